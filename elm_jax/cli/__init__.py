"""The command line, `elm`: one file for each command, each of which calls one function of the package."""

import sys
from typing import TYPE_CHECKING, Any

from elm_jax.errors import describe_lack_of_memory
from elm_jax.launch import interrupts

if TYPE_CHECKING:
    from elm_jax.cli.command_line import app, expand_gin_flags

__all__ = ["app", "expand_gin_flags", "main"]


def main(arguments: list[str] | None = None) -> Any:
    """Runs the command line; a lack of memory ends it with exit code 2, Ctrl-C with 130, SIGTERM with 143."""
    with interrupts.exit_on_signals(to_process_end=arguments is None):
        try:
            from elm_jax.cli import command_line

            return command_line.run_command(arguments)
        except Exception as error:
            message = describe_lack_of_memory(error)
            if message is None:
                raise
            print(f"elm: {message}", file=sys.stderr)
            raise SystemExit(2) from None


def __getattr__(name: str) -> Any:
    """Imports the commands when they are asked for, so that Ctrl-C is one sentence from the start."""
    if name not in __all__:
        raise AttributeError(f"module 'elm_jax.cli' has no attribute {name!r}")
    from elm_jax.cli import command_line

    return getattr(command_line, name)
