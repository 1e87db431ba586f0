"""Runs: one function a verb, called by the command line, by gin recipes and by scripts."""
