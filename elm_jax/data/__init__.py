"""Data: rows of tasks, rendered and tokenised."""
