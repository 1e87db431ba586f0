"""Stands in the way of tensorflow in processes that must do without it."""

raise ImportError("tensorflow is imported where it must not be")
