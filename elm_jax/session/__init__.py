"""Session: a run's directory, opened with its base, tokenizer and settings."""
