"""The command line, `elm`: one verb a function of `elm_jax.runs`."""

from elm_jax.cli.entry import app, main, spelled_out

__all__ = ["app", "main", "spelled_out"]
