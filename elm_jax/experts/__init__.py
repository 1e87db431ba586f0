"""Experts: libraries of trained experts, their files, and how they are imported, exported and published."""
