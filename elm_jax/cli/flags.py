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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, get_args, get_type_hints

import typer

from elm_jax.cli.options import ProcessFlags, RecipeFlags
from elm_jax.errors import UserError

BESIDE_RECIPES = {"track", "part", "dry_run", "restart", "wait", "as_json"}
"""Flags that say nothing that a recipe says, or are added to it."""
MACROS = {
    "names": "MIXTURE_OR_TASK_NAME",
    "run": "MODEL_DIR",
    "base": "INITIAL_CHECKPOINT_PATH",
    "tokenizer": "VOCABULARY",
    "steps": "TRAIN_STEPS",
    "rate": "LEARNING_RATE",
    "seed": "RANDOM_SEED",
    "kind": "EXPERT_KIND",
    "limit": "MAX_TRAIN_SAMPLES",
    "method": "METHODS",
}
"""Those of flags that have another name."""
CONTEXT = "context"
"""The parameter by which a command learns what the user gave."""


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
        given = _given(flags.pop(CONTEXT, None), flags)
        for name, record in records.items():
            flags[name] = record(**{field.name: flags.pop(field.name) for field in fields(record)})
            if isinstance(flags[name], RecipeFlags):
                _require_recipe_alone(flags[name], given, records)
        command(**flags)

    parameters.append(inspect.Parameter(CONTEXT, inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))
    # Typer reads both: the signature for defaults, the annotations for types.
    flat.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat


def spelling(name: str) -> str:
    """Returns the flag of a field.

    >>> spelling("batch_tokens")
    '--batch-tokens'
    """
    return f"--{name.strip('_').replace('_', '-')}"


def _given(context: Any, names: Iterable[str]) -> set[str]:
    """Returns the flags that the user gave, be it with their defaults."""
    if context is None:
        return set()
    sources = {name: context.get_parameter_source(name) for name in names}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def _require_recipe_alone(recipe: RecipeFlags, given: Iterable[str], records: Mapping[str, type]) -> None:
    """Raises a UserError if what was given beside a recipe, or in place of one, would not be read."""
    if not recipe.gin_file and not recipe.config:
        unread = [field.name for field in fields(recipe) if field.name.startswith("gin_")]
        for name in unread:
            if value := getattr(recipe, name):
                what = value if isinstance(value, str) else value[0]
                raise UserError(f"Expected a recipe for {what!r}, got none. Fix: name it with --gin_file.")
        return
    beside = [kind for kind in records.values() if issubclass(kind, RecipeFlags | ProcessFlags)]
    allowed = BESIDE_RECIPES | {field.name for kind in beside for field in fields(kind)}
    for name in sorted(set(given) - allowed):
        flag = "names of tasks" if name == "names" else spelling(name)
        raise UserError(
            f"Expected --gin_file alone, since the recipe says what is done and how, got {flag} too. Fix: "
            f"give it as a macro, such as --gin.{MACROS.get(name, name.strip('_').upper())}=…, or leave the "
            "recipe out."
        )


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
