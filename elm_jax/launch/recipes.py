"""Recipes: gin files that configure a run, read the way T5X's are.

`--gin_file=F` may be given several times, later ones win; `--gin.NAME=VALUE` sets a macro or a parameter. No
function of ours knows gin: a recipe names functions by their path (gin's dynamic registration), and `bind`
returns the one that a command calls with the recipe's values bound to it.
"""

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

from elm_jax import names
from elm_jax.errors import UntrustedCodeError, UserError
from elm_jax.launch import old_recipes
from elm_jax.storage import SHIPPED

INCLUDE = r"^include\s+['\"](.+?)['\"]"
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
        files: recipes; later ones win.
        bindings: of the command line; they win over recipes.
        search_paths: further directories that recipes and what they include are looked for in.

    Raises:
        UserError: a file is not there, gin does not parse, a macro has no value, or nothing reads a binding
            of the command line.
    """
    load(files, bindings, search_paths=search_paths)
    configured = gin.get_configurable(function)

    def call(*arguments: Any, **options: Any) -> Any:
        with plain_errors():
            return configured(*arguments, **options)

    return call


@contextmanager
def plain_errors() -> Generator[None, None, None]:
    """Takes off a UserError what gin adds: where it was called from, which helps nobody who can mend it."""
    try:
        yield
    except UserError as error:
        message = str(error).partition("\n  In call to configurable")[0]
        if isinstance(error, UntrustedCodeError):  # the command line asks, and goes on
            raise UntrustedCodeError(message, error.files) from error
        raise UserError(message) from error


def config_text() -> str:
    """Returns what gin holds: every macro and parameter with the value that won."""
    return gin.config_str()


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
        gin.parse_config([old_recipes.translate(binding, "the command line") for binding in bindings])
    except Exception as error:  # gin raises whatever it met: SyntaxError, ValueError, ImportError, …
        raise UserError(
            f"Expected a recipe that gin reads, got an error in {', '.join(files)}: {_first_line(error)}. "
            "Fix: correct the recipe or the binding."
        ) from error
    for binding in bindings:
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


def find(file: str, search_paths: Sequence[str] = ()) -> Path:
    """Returns a recipe's path: as given, in a search path, or below the recipes that come with elm_jax."""
    for candidate in (Path(file), *(Path(path) / file for path in search_paths), SHIPPED / file):
        if candidate.is_file():
            return candidate
    near = names.near_matches(
        file, (str(path.relative_to(SHIPPED)) for path in (SHIPPED / "gin").rglob("*.gin"))
    )
    hint = f"Did you mean {' or '.join(near)}?" if near else "Fix: give the path of a .gin file."
    raise UserError(f"Expected a recipe at {file!r}, got no file there. {hint}")


def macros_in(files: Sequence[str]) -> set[str]:
    """Returns the macros that recipes read, and those that the files they include read."""
    macros: set[str] = set()
    for file in files:
        text = re.sub(r"#.*", "", find(file).read_text())
        macros |= set(re.findall(r"%([A-Z][A-Z0-9_]*)", text))
        macros |= macros_in(re.findall(INCLUDE, text, re.MULTILINE))
    return macros


def _translated(file: str, search_paths: Sequence[str], scratch: Path) -> Path:
    """Returns a recipe without old names: itself, or a copy if it or what it includes has some."""
    path = find(file, search_paths)
    text = path.read_text()
    included: Mapping[str, Path] = {
        name: _translated(name, search_paths, scratch) for name in re.findall(INCLUDE, text, re.MULTILINE)
    }
    translated = old_recipes.translate(text, str(path))
    for name, copy in included.items():
        if copy.is_relative_to(scratch):
            translated = re.sub(
                rf"^include\s+['\"]{re.escape(name)}['\"]", f"include '{copy}'", translated, flags=re.M
            )
    if translated == text:
        return path
    copy = scratch / f"{len(list(scratch.iterdir()))}-{path.name}"
    copy.write_text(translated)
    return copy


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
