"""The command line, `elm`: one file for each command, each of which calls one function of the package."""

from elm_jax.cli.command_line import app, expand_gin_flags, main

__all__ = ["app", "expand_gin_flags", "main"]
