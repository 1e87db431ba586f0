"""Help: what `--help` prints, in sections, and the one sentence for a command that cannot be read.

Plain text, so that nothing heavy is imported for it. A verb's docstring has its examples, each a paragraph
`Example: elm …`; a mistake in a command is answered with the first.
"""

import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from elm_jax import names
from elm_jax.errors import UserError

_USAGE_ERROR: Any = typer.BadParameter.__base__  # click's own, wherever Typer has it from
_LIST = re.compile(r"<list\[(\w+)\]>")  # how Typer writes what may be repeated, which its help says in words
_EXAMPLE = re.compile(r"^Example: (elm .+)$", re.MULTILINE)


class Command(TyperCommand):
    """A verb, with its options in sections."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the words behind the verb; an error knows of which verb they are."""
        try:
            return super().parse_args(ctx, args)
        except _USAGE_ERROR as error:
            error.ctx = error.ctx or ctx
            raise

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes arguments and options, those of a panel under its title."""
        _write_options(self.get_params(ctx), ctx, formatter)


class Group(TyperGroup):
    """Verbs, in sections of those that go together."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the verbs, then the options that all of them take."""
        self.format_commands(ctx, formatter)
        _write_options(self.get_params(ctx), ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes every verb with the first sentence of its help, those of a panel under its title."""
        width = max(map(len, self.commands))
        rows = (
            (
                getattr(command, "rich_help_panel", None) or "Commands",
                f"{name:<{width}}",
                command.get_short_help_str(formatter.width - width - 4),
            )
            for name, command in self.commands.items()
            if not command.hidden
        )
        _write_sections(rows, formatter)


def make_group(help_text: str) -> typer.Typer:
    """Returns a group of verbs, such as `elm experts`."""
    return typer.Typer(cls=Group, help=help_text, no_args_is_help=True, rich_markup_mode=None)


def examples(command: Any) -> list[str]:
    """Returns the examples in a command's help."""
    return _EXAMPLE.findall(command.help or "")


@contextmanager
def plain_usage_errors() -> Generator[None, None, None]:
    """Turns what click says of a command that it cannot read into a UserError of one sentence."""
    try:
        yield
    except _USAGE_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # it is the help
            raise
        raise UserError(_describe(error)) from error


def _describe(error: Any) -> str:
    """Returns what was expected, what came, and a command that works."""
    context = error.ctx
    if context is None:
        return error.format_message()
    path, command = context.command_path, context.command
    written = getattr(error, "option_name", None)
    if written is not None and "No such option" in error.message:
        known = sorted(name for each in command.get_params(context) for name in each.opts)
        near = names.near_matches(written, known)
        fix = f"write {near[0]}" if near else f"see `{path} --help`"
        return f"Expected an option of {path}, got {written}. Fix: {fix}."
    unknown = re.match(r"No such command '(.*?)'\.", error.message)
    if unknown:
        near = names.near_matches(unknown[1], list(command.commands))
        fix = " or ".join(f"`{path} {name}`" for name in near) or f"`{path} --help` lists them"
        return f"Expected a command of {path}, got {unknown[1]!r}. Fix: {fix}."
    shown = examples(command)
    fix = f"write it as in `{shown[0]}`" if shown else f"see `{path} --help`"
    message = error.format_message().rstrip(".")
    if getattr(error, "param", None) is None:
        return f"Expected a command as {path} reads it, got this: {message}. Fix: {fix}."
    hint = error.param.get_error_hint()
    if message.startswith("Missing"):
        return f"Expected {hint} behind {path}, got none. Fix: {fix}."
    return f"Expected a valid {hint} behind {path}, got this: {error.message.rstrip('.')}. Fix: {fix}."


def _write_options(params: Iterable[Any], ctx: Any, formatter: Any) -> None:
    """Writes arguments, options, and options by panel, in this order."""
    rows = []
    for param in params:
        record = param.get_help_record(ctx)
        if record is not None:
            is_argument = param.param_type_name == "argument"
            title = "Arguments" if is_argument else getattr(param, "rich_help_panel", None) or "Options"
            rows.append((title, _LIST.sub(r"<\1>", record[0]), record[1]))
    order = {"Arguments": 0, "Options": 1}
    _write_sections(sorted(rows, key=lambda row: order.get(row[0], 2)), formatter)


def _write_sections(rows: Iterable[tuple[str, str, str]], formatter: Any) -> None:
    """Writes rows of a title, a name and its text, those of a title under it."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for title, name, text in rows:
        sections.setdefault(title, []).append((name, text))
    for title, lines in sections.items():
        with formatter.section(title):
            formatter.write_dl(lines)
