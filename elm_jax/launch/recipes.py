"""Recipes: gin files that say how a run is done, read the way T5X's are.

`--gin_file=F` may be given several times, later ones win; `--gin.NAME=VALUE` sets a macro or a parameter. No
function of ours knows gin: a recipe names functions by their path (gin's dynamic registration), and the one a
command calls comes back here with the recipe's values bound to it.
"""

# Gin's search for packaged files calls it without importing it.
import importlib.util  # noqa: F401  # pyright: ignore[reportUnusedImport]
import logging
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gin

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.storage import SHIPPED

NOT_HERE = "Path not found: %s"  # what gin says of each place as an error


def bound(
    function: Callable[..., Any],
    files: Sequence[str],
    bindings: Sequence[str] = (),
    *,
    places: Sequence[str] = (),
) -> Callable[..., Any]:
    """Returns the function with the values of recipes and bindings applied.

    `places` are further directories that recipes and what they include are looked for in. Raises UserError
    for a file that is not there, gin that does not parse, a macro without a value, and a binding on the
    command line that nothing reads.
    """
    load(files, bindings, places=places)
    configured = gin.get_configurable(function)

    def call(*arguments: Any, **options: Any) -> Any:
        try:
            return configured(*arguments, **options)
        except UserError as error:
            # Gin adds where it was called from, which helps nobody who can mend the mistake.
            raise UserError(str(error).partition("\n  In call to configurable")[0]) from error

    return call


def resolved() -> str:
    """Returns what gin holds: every macro and parameter with the value that won."""
    return gin.config_str()


def load(files: Sequence[str], bindings: Sequence[str] = (), *, places: Sequence[str] = ()) -> None:
    """Reads recipes into gin's configuration, in place of what it held."""
    gin.clear_config()
    for place in (".", *places, str(SHIPPED)):
        gin.add_config_file_search_path(place)
    found = [str(find(file, places)) for file in files]
    try:
        with _quiet_search():
            gin.parse_config_files_and_bindings(found, [], finalize_config=False)
        read_before = macros_read(found)
        gin.parse_config(list(bindings))
    except Exception as error:  # gin raises whatever it met: SyntaxError, ValueError, ImportError, …
        raise UserError(f"The recipe {', '.join(files)} does not read: {_first_line(error)}") from error
    for binding in bindings:
        name = binding.partition("=")[0].strip()
        if re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
            where = f"the recipe {', '.join(files)}"
            names.resolve(name, sorted(read_before), kind="macro", where=where)
    if "gin.REQUIRED" in gin.config_str():
        unset = sorted(set(re.findall(r"^([A-Z]\w*) = +%?gin\.REQUIRED", gin.config_str(), re.MULTILINE)))
        raise UserError(f"The recipe wants values for {', '.join(unset)}: give them as --gin.NAME=VALUE.")


def find(file: str, places: Sequence[str] = ()) -> Path:
    """Returns a recipe's path: as given, in one of the places, or below those that come with elm_jax."""
    for candidate in (Path(file), *(Path(place) / file for place in places), SHIPPED / file):
        if candidate.is_file():
            return candidate
    near = names.near_matches(
        file, (str(path.relative_to(SHIPPED)) for path in (SHIPPED / "gin").rglob("*.gin"))
    )
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise UserError(f"A recipe is wanted at {file!r}, but no file is there.{hint}")


def macros_read(files: Sequence[str]) -> set[str]:
    """Returns the macros that recipes read, those of the files they include among them."""
    read: set[str] = set()
    for file in files:
        text = re.sub(r"#.*", "", find(file).read_text())
        read |= set(re.findall(r"%([A-Z][A-Z0-9_]*)", text))
        read |= macros_read(re.findall(r"^include\s+['\"](.+?)['\"]", text, re.MULTILINE))
    return read


@contextmanager
def _quiet_search() -> Generator[None, None, None]:
    """Keeps gin from reporting every place that an included file is not in; one that is in none raises."""

    def passes(record: logging.LogRecord) -> bool:
        return record.msg != NOT_HERE

    root = logging.getLogger()  # where gin writes
    root.addFilter(passes)
    try:
        yield
    finally:
        root.removeFilter(passes)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
