"""Flags in records: a command takes dataclasses, and the command line has one flag for each of their fields.

    @dataclass(frozen=True)
    class SourceFlags:
        PANEL: ClassVar[str] = "Data"
        data_dir: Annotated[str | None, typer.Option(help="Directory of datasets.")] = None

    @flattened
    def index(run: RunDir = DEFAULT_OUT, *, source: SourceFlags) -> None: ...

`elm index` then takes `--run` and `--data-dir`. Records are keyword-only and need no default: each of their
fields has one.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, get_args, get_type_hints


def flattened(command: Callable[..., None]) -> Callable[..., None]:
    """Returns a command whose signature has the fields of its records in the place of the records.

    Args:
        command: A function whose parameters are flags, as typer reads them, or frozen dataclasses of flags.

    Returns:
        A function that takes the flags by name, makes the records, and calls the command with them.
    """
    hints = get_type_hints(command, include_extras=True)
    records: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if is_dataclass(hints[name]):
            records[name] = hints[name]
            parameters += _field_parameters(hints[name])
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name]))

    @functools.wraps(command)
    def flat(**flags: Any) -> None:
        for name, record in records.items():
            flags[name] = record(**{field.name: flags.pop(field.name) for field in fields(record)})
        command(**flags)

    # Typer reads both: the signature for defaults, the annotations for types.
    flat.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat


def changed(record: Any) -> Iterator[str]:
    """Yields the names of a record's fields that do not have their defaults."""
    return (field.name for field in fields(record) if getattr(record, field.name) != field.default)


def spelling(name: str) -> str:
    """Returns the flag of a field.

    >>> spelling("batch_tokens")
    '--batch-tokens'
    """
    return f"--{name.strip('_').replace('_', '-')}"


def _field_parameters(record: type) -> Iterator[inspect.Parameter]:
    """Yields a keyword parameter for each field of a record, in the record's panel of `--help`."""
    hints = get_type_hints(record, include_extras=True)
    for field in fields(record):
        assert field.default is not MISSING, f"{record.__name__}.{field.name} needs a default"
        type_, option = get_args(hints[field.name])
        option = copy.copy(option)
        option.rich_help_panel = option.rich_help_panel or getattr(record, "PANEL", None)
        yield inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=Annotated[type_, option],
        )
