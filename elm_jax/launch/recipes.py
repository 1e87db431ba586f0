"""Recipes: gin files that configure a run, read the way T5X's are, or YAML files of their macros.

`--gin_file=F` may be given several times, later ones win; `--gin.NAME=VALUE` sets a macro or a parameter, and
a word that is no Python there is a text. No function of ours knows gin: a recipe names functions by their
path (gin's dynamic registration), and `bind` returns the one that a command calls with the recipe's values
bound to it.
"""

import ast

# Gin's search for packaged files calls it without importing it.
import importlib.util  # noqa: F401  # pyright: ignore[reportUnusedImport]
import logging
import re
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gin

from elm_jax import names, storage
from elm_jax.errors import TrainingStopped, UntrustedCodeError, UserError
from elm_jax.launch import old_recipes
from elm_jax.prompting.reader import read_yaml
from elm_jax.storage import SHIPPED

YAML_SUFFIXES = (".yaml", ".yml")
INCLUDE_PATTERN = r"^include\s+['\"](.+?)['\"]"
NOT_FOUND = "Path not found: %s"  # gin logs it as an error for each directory


def bind(
    function: Callable[..., Any],
    files: Sequence[str],
    bindings: Sequence[str] = (),
    *,
    search_paths: Sequence[str] = (),
) -> Callable[..., Any]:
    """Returns the function with the values of recipes and bindings applied.

    Args:
        function: to call.
        files: recipes, gin or YAML; later ones win.
        bindings: of the command line; they win over recipes.
        search_paths: further directories that recipes and what they include are looked for in.

    Raises:
        UserError: a file is not there, gin does not parse, a macro has no value, nothing reads a binding of
            the command line, or the recipe is one of another function.
    """
    load(files, bindings, search_paths=search_paths)
    try:
        is_bound = bool(gin.get_bindings(function))
    except ValueError:  # gin knows those functions alone that recipes name
        is_bound = False
    if not is_bound:
        raise UserError(
            f"Expected a recipe that binds {function.__name__!r}, got {', '.join(files)}. Fix: give it to "
            "the command that its first lines show, `elm train`, `elm evaluate` or `elm run`."
        )
    configured = gin.get_configurable(function)

    def call(*arguments: Any, **options: Any) -> Any:
        with plain_errors():
            return configured(*arguments, **options)

    return call


@contextmanager
def plain_errors() -> Generator[None, None, None]:
    """Takes off an exception for the user what gin adds: where it was called from, which mends nothing."""
    try:
        yield
    except UserError as error:
        message = str(error).partition("\n  In call to configurable")[0]
        if isinstance(error, UntrustedCodeError):  # the command line asks, and goes on
            raise UntrustedCodeError(message, error.files) from error
        raise UserError(message) from error
    except TrainingStopped as stopped:
        raise TrainingStopped(stopped.batch) from stopped


def write_config(verb: str) -> str | None:
    """Writes what gin holds, every macro and parameter with the value that won, into MODEL_DIR/logs.

    Returns:
        The file, named after the verb; None if MODEL_DIR cannot be written.
    """
    directory = storage.path(gin.query_parameter("%MODEL_DIR")) / "logs"
    if not storage.is_writable(directory):
        return None
    storage.write_bytes(directory / f"{verb}.gin", gin.config_str().encode())
    return str(directory / f"{verb}.gin")


def load(files: Sequence[str], bindings: Sequence[str] = (), *, search_paths: Sequence[str] = ()) -> None:
    """Reads recipes into gin's configuration, in place of what it held; see `bind`."""
    gin.clear_config()
    for directory in (".", *search_paths, str(SHIPPED)):
        gin.add_config_file_search_path(directory)
    found = [str(find(file, search_paths)) for file in files]
    try:
        with _quiet_search(), tempfile.TemporaryDirectory() as scratch:
            current = [str(_translated(file, search_paths, Path(scratch))) for file in found]
            gin.parse_config_files_and_bindings(current, [], finalize_config=False)
        read_by_files = macros_in(found)
        gin.parse_config([old_recipes.translate(quote_word(each), "the command line") for each in bindings])
    except UserError:
        raise
    except Exception as error:  # gin raises whatever it met: SyntaxError, ValueError, ImportError, …
        raise UserError(
            f"Expected a recipe that gin reads, got an error in {', '.join(files)}: {_first_line(error)}. "
            "Fix: correct the recipe or the binding."
        ) from error
    in_yaml = [
        line for file in found if file.endswith(YAML_SUFFIXES) for line in _read(Path(file)).splitlines()
    ]
    for binding in [*bindings, *in_yaml]:
        name = binding.partition("=")[0].strip()
        if re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
            where = f"the recipe {', '.join(files)}"
            names.resolve(name, sorted(read_by_files), kind="macro", where=where)
    if "gin.REQUIRED" in gin.config_str():
        unset = sorted(set(re.findall(r"^([A-Z]\w*) = +%?gin\.REQUIRED", gin.config_str(), re.MULTILINE)))
        raise UserError(
            f"Expected values for the macros {', '.join(unset)}, got none. "
            "Fix: give them as --gin.NAME=VALUE."
        )


def quote_word(binding: str) -> str:
    """Returns a binding whose value gin reads: one that is no Python is a text.

    >>> quote_word("DATA_DIR = my/data"), quote_word("TRAIN_STEPS = 5"), quote_word("NAME = 'quoted'")
    ("DATA_DIR = 'my/data'", 'TRAIN_STEPS = 5', "NAME = 'quoted'")
    """
    name, equals, value = binding.partition("=")
    value = value.strip()
    if not equals or value[:1] in tuple("([{'\"@%"):
        return binding
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return f"{name.strip()} = {value!r}"
    return binding


def find(file: str, search_paths: Sequence[str] = ()) -> Path:
    """Returns a recipe's path: as given, in a search path, or below the recipes that come with elm_jax."""
    for candidate in (Path(file), *(Path(path) / file for path in search_paths), SHIPPED / file):
        if candidate.is_file():
            return candidate
    near = names.near_matches(
        file, (str(path.relative_to(SHIPPED)) for path in (SHIPPED / "gin").rglob("*.gin"))
    )
    hint = f"Did you mean {' or '.join(near)}?" if near else "Fix: give the path of a .gin or .yaml file."
    raise UserError(f"Expected a recipe at {file!r}, got no file there. {hint}")


def macros_in(files: Sequence[str]) -> set[str]:
    """Returns the macros that recipes read, and those that the files they include read."""
    macros: set[str] = set()
    for file in files:
        text = re.sub(r"#.*", "", _read(find(file)))
        macros |= set(re.findall(r"%([A-Z][A-Z0-9_]*)", text))
        macros |= macros_in(re.findall(INCLUDE_PATTERN, text, re.MULTILINE))
    return macros


def _translated(file: str, search_paths: Sequence[str], scratch: Path) -> Path:
    """Returns a recipe without old names: itself, or a copy if it or what it includes has some."""
    path = find(file, search_paths)
    text = _read(path)
    included: Mapping[str, Path] = {
        name: _translated(name, search_paths, scratch)
        for name in re.findall(INCLUDE_PATTERN, text, re.MULTILINE)
    }
    translated = old_recipes.translate(text, str(path))
    for name, copy in included.items():
        if copy.is_relative_to(scratch):
            translated = re.sub(
                rf"^include\s+['\"]{re.escape(name)}['\"]", f"include '{copy}'", translated, flags=re.M
            )
    if translated == text and path.suffix not in YAML_SUFFIXES:
        return path
    copy = scratch / f"{len(list(scratch.iterdir()))}-{path.stem}.gin"
    copy.write_text(translated)
    return copy


def _read(path: Path) -> str:
    """Returns a recipe's text as gin reads it; a YAML file's macros, and the recipe that it may include."""
    if path.suffix not in YAML_SUFFIXES:
        return path.read_text()
    macros = read_yaml(str(path), path.read_bytes())
    if not isinstance(macros, dict) or not all(isinstance(name, str) for name in macros):
        raise UserError(
            f"Expected macros and their values in {str(path)!r}, such as `TRAIN_STEPS: 100`, got another "
            "form. Fix: write one macro on each line."
        )
    lines = [f"include {macros.pop('include')!r}"] if "include" in macros else []
    return "\n".join([*lines, *(f"{name} = {_to_python(value)!r}" for name, value in macros.items())]) + "\n"


def _to_python(value: Any) -> Any:
    """Returns a value of YAML; a number such as 1e-4, which YAML takes for a text, as a number."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value


@contextmanager
def _quiet_search() -> Generator[None, None, None]:
    """Keeps gin from logging every directory that an included file is not in; one that is in none raises."""

    def is_other(record: logging.LogRecord) -> bool:
        return record.msg != NOT_FOUND

    root = logging.getLogger()  # where gin writes
    root.addFilter(is_other)
    try:
        yield
    finally:
        root.removeFilter(is_other)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
