"""Routing: which experts a task nobody trained on should use. One router a file."""
