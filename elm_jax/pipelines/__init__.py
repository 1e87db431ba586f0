"""Pipelines: whole recipes, from a base to a report."""
