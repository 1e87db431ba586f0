"""Stands in the way of torch in processes that must do without it."""

raise ImportError("torch is imported where it must not be")
