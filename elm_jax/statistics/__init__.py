"""Statistics: what merging and routing know of the rows that an expert was trained on."""
