"""Statistics of the rows that an expert was trained on, which merging and routing read."""
