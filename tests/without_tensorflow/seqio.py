"""Stands in the way of seqio in processes that must do without it."""

raise ImportError("seqio is imported where it must not be")
