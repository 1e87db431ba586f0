"""Evaluation: methods compared on tasks, from routing to the report."""
