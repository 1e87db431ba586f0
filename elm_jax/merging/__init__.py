"""Merging: several experts made into one. One method a file."""
