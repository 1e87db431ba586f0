"""The entry of the command line: its verbs put together, and how a command ends.

Nothing heavy is imported before a verb needs it, so that `elm --help` answers at once. A `UserError` is one
sentence and exit code 2; results go to standard output, progress and errors to standard error.
"""

import os
import re
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from elm_jax.cli import (
    compilations,
    convert,
    doctor,
    evaluation,
    experts,
    merge,
    plan,
    prompts,
    reporting,
    tasks,
    training,
    verbs,
)
from elm_jax.errors import UserError


class OneSentence(TyperGroup):
    """Ends a user's mistake with one sentence and exit code 2, Ctrl-C with exit code 130."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the verb."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            print(f"elm: {error}", file=sys.stderr)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            print("elm: stopped. Run the same command again to go on where it was.", file=sys.stderr)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=OneSentence,
    help="Train experts on a frozen T5, retrieve, merge and score them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(verbs.app)
app.command()(training.train)
app.command()(evaluation.evaluate)
app.command()(doctor.doctor)
app.command()(convert.convert)
app.command()(merge.merge)
app.command()(plan.plan)
app.command()(reporting.report)
app.add_typer(tasks.app, name="tasks")
app.add_typer(prompts.app, name="prompts")
app.add_typer(experts.app, name="experts")


def spelled_out(arguments: list[str]) -> list[str]:
    """Turns T5X's `--gin.NAME=VALUE` into `--gin_bindings=NAME = VALUE`.

    >>> spelled_out(["run", "--gin.TRAIN_STEPS=5"])
    ['run', '--gin_bindings=TRAIN_STEPS = 5']
    """
    return [
        re.sub(r"^--gin\.([^=]+)=(.*)$", r"--gin_bindings=\1 = \2", word, flags=re.DOTALL)
        for word in arguments
    ]


def main(arguments: list[str] | None = None) -> Any:
    """Runs the command line."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if "jax" not in sys.modules:
        compilations.keep(os.environ)
    return app(spelled_out(sys.argv[1:] if arguments is None else arguments))
