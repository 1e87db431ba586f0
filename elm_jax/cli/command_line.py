"""The command line: its commands put together, and how one ends.

Nothing heavy is imported before a command needs it, so that `elm --help` answers at once. A `UserError` is
one sentence and exit code 2. Results go to standard output, progress and errors to standard error.
"""

import contextlib
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Generator, Mapping
from typing import Annotated, Any

import typer

from elm_jax.cli import (
    compilation_cache,
    completion,
    convert,
    doctor,
    evaluate,
    experts,
    index,
    init,
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
from elm_jax.cli.help_texts import Command, Group, plain_usage_errors
from elm_jax.controls import escape_output
from elm_jax.errors import TrainingStopped, UntrustedCodeError, UserError
from elm_jax.launch import interrupts

TRUST = "--trust"
ANYWHERE = (TRUST, "-q", "--quiet", "-v", "--verbose")
"""Options of `elm` that may stand behind a verb too."""

ADDRESS_SPACE = 2_500_000_000
"""Bytes that Python, JAX and their threads take before there is a model: 2.2 GB on two cores."""


class CommandGroup(Group):
    """Ends a user's mistake with one sentence and exit code 2, Ctrl-C with exit code 130.

    A command that would run a stranger's Python starts again if the user agrees to it.
    """

    def main(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        """Runs the command line; the options `ANYWHERE` may stand anywhere in it."""
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        first = [word for word in words[:end] if word in ANYWHERE]
        words = first + [word for word in words[:end] if word not in ANYWHERE] + words[end:]
        options.setdefault("prog_name", "elm")
        try:
            return super().main(words, *rest, **options)
        except UntrustedCodeError as error:
            print(f"elm: {error}", file=sys.stderr)
            if TRUST not in first and not (
                is_interactive() and typer.confirm("Run it, now and later?", err=True)
            ):
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

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """Reads the options before a verb."""
        with _one_sentence():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        with _one_sentence(verbose=ctx.params["verbose"]), escape_output(), _progress(ctx.params):
            _require_address_space()
            return super().invoke(ctx)


@contextlib.contextmanager
def _one_sentence(*, verbose: bool = False) -> Generator[None, None, None]:
    """Ends a user's mistake, and a training that saved and stopped, with one sentence.

    Args:
        verbose: whether a mistake's traceback comes before it.
    """
    try:
        with plain_usage_errors():
            yield
    except UntrustedCodeError:
        raise
    except UserError as error:
        if verbose:
            traceback.print_exc()
        print(f"elm: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except TrainingStopped as stopped:
        print(f"elm: {stopped}", file=sys.stderr)
        raise typer.Exit(interrupts.EXIT_CODES[signal.SIGTERM]) from None


@contextlib.contextmanager
def _progress(options: Mapping[str, Any]) -> Generator[None, None, None]:
    """Shows no progress if the user asked for quiet, and the log of libraries if for more."""
    with contextlib.ExitStack() as stack:
        if options["quiet"]:
            from elm_jax.telemetry import progress

            stack.enter_context(progress.hidden())
        if options["verbose"]:
            root, handler = logging.getLogger(), logging.StreamHandler(sys.stderr)
            stack.callback(root.setLevel, root.level)
            stack.callback(root.removeHandler, handler)
            root.addHandler(handler)
            root.setLevel(logging.INFO)
        yield


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
    help="Train experts on a frozen T5, retrieve, merge and score them.\n\nExample: elm quickstart",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> bool:
    if asked:
        import elm_jax

        print(f"elm_jax {elm_jax.__version__}")
        raise typer.Exit
    return asked


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors alone.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print the log of libraries, and where an error arose.")
    ] = False,
    trust: Annotated[
        bool,
        typer.Option(
            TRUST, help="Run the Python files that a run names, now and later; otherwise a terminal asks."
        ),
    ] = False,
) -> None:
    pass  # what they mean is in `CommandGroup`


def completion_script(shell: Annotated[str, typer.Argument(help="bash, zsh or fish.")]) -> None:
    """Print a script that completes verbs, options and tasks.

    Example: elm completion bash > ~/.local/share/bash-completion/completions/elm

    Example: elm completion zsh >> ~/.zshrc

    Example: elm completion fish > ~/.config/fish/completions/elm.fish
    """
    completion.print_script(shell, typer.main.get_command(app))


START, EXPERTS, RESULTS, MACHINE = "Start", "Tasks and experts", "Results", "Machines and scripts"
for panel, verb in (
    (START, quickstart.quickstart),
    (START, init.init),
    (EXPERTS, prepare.prepare),
    (EXPERTS, training.train),
    (EXPERTS, index.index),
    (EXPERTS, route.route),
    (EXPERTS, merge.merge),
    (EXPERTS, convert.convert),
    (RESULTS, evaluate.evaluate),
    (RESULTS, report.report),
    (RESULTS, run.run),
    (MACHINE, plan.plan),
    (MACHINE, doctor.doctor),
):
    app.command(cls=Command, rich_help_panel=panel)(verb)
app.command("completion", cls=Command, rich_help_panel=MACHINE)(completion_script)
for group, name in ((tasks.app, "tasks"), (prompts.app, "prompts"), (experts.app, "experts")):
    app.add_typer(group, name=name, rich_help_panel=EXPERTS)


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
