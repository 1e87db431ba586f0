"""Prompting: templates that turn a dataset's row into a prompt, its answer choices and its target."""
