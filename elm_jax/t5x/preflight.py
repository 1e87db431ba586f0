"""What can be refused of a run under T5X before T5X is imported, which takes half a minute.

The gin files are parsed, not run: macros with the values that win, what reads them, and what `make_module` is
given. T5X's own files are read where T5X lies.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from gin import config_parser

from elm_jax import names, ranges, storage
from elm_jax.errors import UserError
from elm_jax.launch import recipes
from elm_jax.t5x import checkpoints, registry
from elm_jax.tasks import data_source, original, user_tasks
from elm_jax.tasks.data_source import Source
from elm_jax.tokenizers import sentencepiece

MODULE = "checkpoints.make_module"
CHECKPOINTS = ("MODEL_DIR", "INITIAL_CHECKPOINT_PATH", "CHECKPOINT_PATH")
OUTPUTS = ("EVAL_OUTPUT_DIR", "INFER_OUTPUT_DIR")
KNOWN_PACKAGES = ("__gin__", "__main__", "elm_jax", "seqio", "t5x")
"""That register no tasks when a gin file imports them."""
NUMBER_RANGES = {
    **dict.fromkeys(("TRAIN_STEPS", "BATCH_SIZE", "SAVE_PERIOD", "KEEP", "EVAL_PERIOD"), ranges.whole(1)),
    **dict.fromkeys(("WARMUP_STEPS", "EXTRA_IDS"), ranges.whole(0)),
    "LEARNING_RATE": ranges.real(0, above=True),
    "DROPOUT_RATE": ranges.real(0, 1, below=True),
}
"""What macros may be, where they have plain values."""


class Macro(str):
    """The name of a macro that stands in a gin file in place of a value."""


class Reference(str):
    """The name of a function that stands in a gin file in place of a value."""


@dataclass
class Recipe:
    """What gin files say, later statements over earlier ones.

    Attributes:
        macros: Name -> value.
        bindings: Function, without its module's package, and argument -> value.
        read: Macros that something reads.
        own: Macros that are set outside of T5X's own files.
        modules: What is imported outside of T5X's own files.
    """

    macros: dict[str, Any] = field(default_factory=dict)
    bindings: dict[tuple[str, str], Any] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)
    own: set[str] = field(default_factory=set)
    modules: set[str] = field(default_factory=set)


def require_runnable(recipe: Recipe) -> None:
    """Refuses a run that would fail, or would not be what was asked for.

    Raises:
        UserError: If a macro has no value, one out of its range, or none that reads it; if a directory is
            relative or T5X has no way to it; if a checkpoint, a vocabulary, data, templates or a task are
            missing; or if a checkpoint or a vocabulary does not fit the network.
    """
    if not recipe.bindings:  # no gin files: T5X says what it wants
        return
    for name in sorted(recipe.own - recipe.read):
        names.resolve(name, sorted(recipe.read), kind="macro", where="what the gin files read")
    values = {name: _resolve(Macro(name), recipe) for name in recipe.read}
    unset = sorted(name for name, value in values.items() if isinstance(value, Macro))
    if unset:
        raise UserError(
            f"Expected values for the macros {', '.join(unset)}, got none. Fix: give them as "
            "--gin.NAME=VALUE."
        )
    for name in (*CHECKPOINTS, *OUTPUTS):
        _require_reachable(name, values.get(name))
    for name, allowed in NUMBER_RANGES.items():
        value = values.get(name)
        if value is not None and _is_literal(value):
            ranges.require(name, value, allowed)
    lengths = values.get("TASK_FEATURE_LENGTHS")
    if isinstance(lengths, Mapping):
        data_source.feature_lengths(lengths)
    _require_fit(recipe)
    _require_tasks(recipe)


def _require_reachable(name: str, where: Any) -> None:
    """Refuses a directory that T5X would not find."""
    if not _is_text(where):
        return
    if "://" in where and not where.startswith("gs://"):
        raise UserError(
            f"Expected a directory of a disk or of gs:// for {name}, as T5X has no other, got {where!r}. "
            "Fix: mount that bucket, or name another directory."
        )
    if name in CHECKPOINTS and "://" not in where and not Path(where).expanduser().is_absolute():
        raise UserError(
            f"Expected an absolute directory for {name}, as T5X wants it, got {where!r}. Fix: give "
            f"--gin.{name}=\"'{Path(where).absolute()}'\"."
        )


def read_recipe(arguments: Sequence[str]) -> Recipe:
    """Returns what the gin files and the bindings among T5X's flags say, as T5X would read them.

    Args:
        arguments: `--gin_file`, `--gin.NAME=VALUE` and others.

    Raises:
        UserError: If a file is missing or does not parse.
    """
    files = _flag_values(arguments, "gin_file")
    bindings = [each[len("--gin.") :] for each in arguments if each.startswith("--gin.")]
    bindings += _flag_values(arguments, "gin_bindings")
    given = [path for each in _flag_values(arguments, "gin_search_paths") for path in each.split(",")]
    found = importlib.util.find_spec("t5x")
    package = Path(found.origin).parent if found and found.origin else None
    search_paths = [*(given or ["."]), *([str(package.parent)] if package else [])]
    recipe = Recipe()
    for file in files:
        _read_file(recipe, file, search_paths, package)
    _read_text(recipe, "\n".join(bindings), "the command line", search_paths, package)
    return recipe


def _flag_values(arguments: Sequence[str], flag: str) -> list[str]:
    """Returns the values of a flag, given as `--flag=value` or `--flag value`."""
    found = []
    for at, argument in enumerate(arguments):
        name, equals, value = argument.lstrip("-").partition("=")
        if name == flag and argument.startswith("-"):
            found += [value] if equals else list(arguments[at + 1 : at + 2])
    return found


def _read_file(recipe: Recipe, file: str, search_paths: Sequence[str], package: Path | None) -> None:
    place = recipes.find(file, search_paths)
    _read_text(recipe, place.read_text(), str(place), search_paths, package)


def _read_text(
    recipe: Recipe, text: str, where: str, search_paths: Sequence[str], package: Path | None
) -> None:
    is_own = package is None or not Path(where).is_relative_to(package)

    class Delegate(config_parser.ParserDelegate):
        """Leaves references unresolved, so that nothing is imported."""

        def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Any:
            return Reference(scoped_configurable_name)

        def macro(self, macro_name: str) -> Any:
            recipe.read.add(macro_name)
            return Macro(macro_name)

    try:
        for statement in config_parser.ConfigParser(text, Delegate()):
            if isinstance(statement, config_parser.IncludeStatement):
                _read_file(recipe, statement.filename, search_paths, package)
            elif isinstance(statement, config_parser.ImportStatement):
                recipe.modules |= {statement.module} if is_own else set()
            elif isinstance(statement, config_parser.BindingStatement):
                if statement.arg_name:
                    function = ".".join(statement.selector.split(".")[-2:])
                    recipe.bindings[function, statement.arg_name] = statement.value
                else:
                    recipe.macros[statement.selector] = statement.value
                    recipe.own |= {statement.selector} if is_own else set()
    except (SyntaxError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"Expected gin in {where}, got an error: {reason:.200}. Fix: correct it; texts have quotes of "
            "their own, as in --gin.MODEL_DIR=\"'/runs/a'\"."
        ) from error
    recipe.read.discard("gin.REQUIRED")


def _resolve(value: Any, recipe: Recipe) -> Any:
    """Returns the value of macros in the place of their names; a macro without a value stays a `Macro`."""
    seen: set[str] = set()
    while isinstance(value, Macro) and value in recipe.macros and value not in seen:
        seen.add(value)
        value = recipe.macros[value]
    return value


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and not isinstance(value, (Macro, Reference))


def _is_literal(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_literal, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_literal, value))
    return not isinstance(value, (Macro, Reference))


def _require_fit(recipe: Recipe) -> None:
    """Makes the network as T5X will, which refuses a checkpoint or a vocabulary that does not fit it."""
    vocabulary = get_literals(recipe, "seqio.SentencePieceVocabulary")
    ids = None
    if vocabulary.get("sentencepiece_model_file"):
        ids = sentencepiece.load(
            vocabulary["sentencepiece_model_file"], extra_ids=vocabulary.get("extra_ids") or 0
        ).size
    given = {name for function, name in recipe.bindings if function == MODULE}
    literal = get_literals(recipe, MODULE)
    if given and given - literal.keys() <= {"vocabulary"}:
        network = checkpoints.make_module(**literal)
        if ids is not None:
            checkpoints.require_embedding_rows(network.config, ids)


def _require_tasks(recipe: Recipe) -> None:
    """Refuses names of tasks that nobody knows, and data and templates that are not there.

    What a module registers with SeqIO is known when both are imported; before, whether it is there.
    """
    given = get_literals(recipe, "registry.register_with_seqio")
    if not {"name", "tasks", "files"} <= given.keys():
        return
    source = read_source(recipe)
    for where, what in (
        (source.data_dir, "A directory of datasets"),
        (source.templates_dir, "A directory of templates"),
    ):
        if where is not None:
            storage.existing_directory(where, what=what, remedy="Correct the path.")
    original.parse_switches(source.faithful)
    if given.get("module"):
        user_tasks.find_module_file(given["module"])
    if given.get("module") or any(each.partition(".")[0] not in KNOWN_PACKAGES for each in recipe.modules):
        return
    is_cached = _resolve(Macro("USE_CACHED_TASKS"), recipe) is True
    registry.require_specs(
        given["name"],
        tasks=given["tasks"],
        files=given["files"],
        source=None if is_cached else source,
        split=given.get("split"),
    )


def read_source(recipe: Recipe) -> Source:
    """Returns where a recipe says that rows and templates come from."""
    return Source(**get_literals(recipe, "data_source.Source"))


def get_literals(recipe: Recipe, function: str | None = None) -> dict[str, Any]:
    """Returns the values that a function is given, or all macros have, where they are plain values."""
    given = recipe.macros
    if function is not None:
        given = {name: value for (called, name), value in recipe.bindings.items() if called == function}
    values = {name: _resolve(value, recipe) for name, value in given.items()}
    return {name: value for name, value in values.items() if _is_literal(value)}
