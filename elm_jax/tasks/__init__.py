"""Tasks: what is defined, where its rows come from, and the prepared files the chips are fed with."""
