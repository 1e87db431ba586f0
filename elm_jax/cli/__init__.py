"""The command line, `elm`: one file for each command, each of which calls one function of the package."""

from typing import TYPE_CHECKING, Any

from elm_jax.launch import interrupts

if TYPE_CHECKING:
    from elm_jax.cli.command_line import app, expand_gin_flags

__all__ = ["app", "expand_gin_flags", "main"]


def main(arguments: list[str] | None = None) -> Any:
    """Runs the command line; Ctrl-C ends it with exit code 130, SIGTERM with 143."""
    with interrupts.exit_on_signals():
        from elm_jax.cli import command_line

        return command_line.run_command(arguments)


def __getattr__(name: str) -> Any:
    """Imports the commands when they are asked for, so that Ctrl-C is one sentence from the start."""
    if name not in __all__:
        raise AttributeError(f"module 'elm_jax.cli' has no attribute {name!r}")
    from elm_jax.cli import command_line

    return getattr(command_line, name)
