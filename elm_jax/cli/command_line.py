"""The command line: its commands put together, and how one ends.

Nothing heavy is imported before a command needs it, so that `elm --help` answers at once. A `UserError` is
one sentence and exit code 2. Results go to standard output, progress and errors to standard error.
"""

import contextlib
import os
import re
import sys
from typing import Annotated, Any

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
from elm_jax.controls import escape_output
from elm_jax.errors import UntrustedCodeError, UserError

TRUST = "--trust"

ADDRESS_SPACE = 2_500_000_000
"""Bytes that Python, JAX and their threads take before there is a model: 2.2 GB on two cores."""


class CommandGroup(TyperGroup):
    """Ends a user's mistake with one sentence and exit code 2, Ctrl-C with exit code 130.

    A command that would run a stranger's Python starts again if the user agrees to it.
    """

    def main(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        """Runs the command line; `--trust` may stand anywhere in it."""
        words = list(sys.argv[1:] if args is None else args)
        trusts = TRUST in words
        words = [TRUST] * trusts + [word for word in words if word != TRUST]
        try:
            return super().main(words, *rest, **options)
        except UntrustedCodeError as error:
            print(f"elm: {error}", file=sys.stderr)
            if not trusts and not (is_interactive() and typer.confirm("Run it, now and later?", err=True)):
                sys.exit(2)
            from elm_jax.session import trust
            from elm_jax.tasks import user_tasks

            try:
                for file in error.files:
                    user_tasks.load_tasks(file)  # so that it is trusted here, even if nothing can be noted
            except UserError as mistake:
                print(f"elm: {mistake}", file=sys.stderr)
                sys.exit(2)
            trust.remember(error.files)
            return super().main(words, *rest, **options)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        try:
            _require_address_space()
            with escape_output():
                return super().invoke(ctx)
        except UntrustedCodeError:
            raise
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


@app.callback()
def _options(
    trust: Annotated[
        bool,
        typer.Option(
            TRUST, help="Run the Python files that a run names, now and later; otherwise a terminal asks."
        ),
    ] = False,
) -> None:
    pass  # what it means is in `CommandGroup.main`


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


def is_interactive() -> bool:
    """Returns whether somebody can answer a question."""
    return sys.stdin.isatty() and sys.stderr.isatty()


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
