"""Experts: the library they are kept in, and their ways in and out."""
