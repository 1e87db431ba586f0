"""The command line: its commands put together, and how one ends.

Nothing heavy is imported before a command needs it, so that `elm --help` answers at once. A `UserError` is
one sentence and exit code 2. Results go to standard output, progress and errors to standard error.
"""

import contextlib
import os
import re
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from elm_jax.cli import (
    compilation_cache,
    convert,
    doctor,
    evaluate,
    experts,
    index,
    merge,
    plan,
    prepare,
    prompts,
    quickstart,
    report,
    route,
    run,
    tasks,
    training,
)
from elm_jax.errors import UserError

ADDRESS_SPACE = 2_500_000_000
"""Bytes that Python, JAX and their threads take before there is a model: 2.2 GB on two cores."""


class CommandGroup(TyperGroup):
    """Ends a user's mistake with one sentence and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        try:
            _require_address_space()
            return super().invoke(ctx)
        except UserError as error:
            print(f"elm: {error}", file=sys.stderr)
            raise typer.Exit(2) from None


def _require_address_space() -> None:
    """Refuses a limit (`ulimit -v`) under which native code would end without a word, before it is loaded."""
    with contextlib.suppress(ImportError):  # absent where the system is not POSIX
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY and limit < ADDRESS_SPACE:
            raise UserError(
                f"Expected {ADDRESS_SPACE / 1e9} GB of address space or more, got a limit of "
                f"{limit / 1e9:.1f} GB. Fix: raise it (`ulimit -v`)."
            )


app = typer.Typer(
    cls=CommandGroup,
    help="Train experts on a frozen T5, retrieve, merge and score them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(quickstart.quickstart)
app.command()(run.run)
app.command()(prepare.prepare)
app.command()(index.index)
app.command()(route.route)
app.command()(training.train)
app.command()(evaluate.evaluate)
app.command()(doctor.doctor)
app.command()(convert.convert)
app.command()(merge.merge)
app.command()(plan.plan)
app.command()(report.report)
app.add_typer(tasks.app, name="tasks")
app.add_typer(prompts.app, name="prompts")
app.add_typer(experts.app, name="experts")


def expand_gin_flags(arguments: list[str]) -> list[str]:
    """Turns T5X's `--gin.NAME=VALUE` into `--gin_bindings=NAME = VALUE`.

    >>> expand_gin_flags(["run", "--gin.TRAIN_STEPS=5"])
    ['run', '--gin_bindings=TRAIN_STEPS = 5']
    """
    return [
        re.sub(r"^--gin\.([^=]+)=(.*)$", r"--gin_bindings=\1 = \2", word, flags=re.DOTALL)
        for word in arguments
    ]


def run_command(arguments: list[str] | None = None) -> Any:
    """Runs the command that the arguments name; default: those of the process."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if "jax" not in sys.modules:
        compilation_cache.enable(os.environ)
    return app(expand_gin_flags(sys.argv[1:] if arguments is None else arguments))
