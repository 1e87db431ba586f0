"""Recipes: gin files that say how a run is done, read the way T5X's are.

`--gin_file=F` may be given several times, later ones win; `--gin.NAME=VALUE` sets a macro or a parameter. No
function of ours knows gin: a recipe names functions by their path (gin's dynamic registration), and the one a
command calls comes back here with the recipe's values bound to it.
"""

import importlib.util  # gin's search for packaged files calls it without importing it
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gin
from elm_jax import names
from elm_jax.errors import UserError

PACKAGED = Path(__file__).parents[1] / "_gin"
CHECKOUT = Path(__file__).parents[2] / "gin"


def bound(
    function: Callable[..., Any], files: Sequence[str], bindings: Sequence[str] = ()
) -> Callable[..., Any]:
    """Returns the function with the values of recipes and bindings applied.

    Raises UserError for a file that is not there, gin that does not parse, a macro without a value, and a
    binding on the command line that nothing reads.
    """
    load(files, bindings)
    return gin.get_configurable(function)


def load(files: Sequence[str], bindings: Sequence[str] = ()) -> None:
    """Reads recipes into gin's configuration, in place of what it held."""
    gin.clear_config()
    for place in (".", str(CHECKOUT.parent), str(PACKAGED.parent)):
        gin.add_config_file_search_path(place)
    found = [str(find(file)) for file in files]
    try:
        gin.parse_config_files_and_bindings(found, [], finalize_config=False)
        read_before = macros_read(found)
        gin.parse_config(list(bindings))
        gin.finalize()
    except UserError:
        raise
    except Exception as error:  # gin raises whatever it met: SyntaxError, ValueError, ImportError, …
        raise UserError(f"The recipe {', '.join(files)} does not read: {_first_line(error)}") from error
    for binding in bindings:
        name = binding.partition("=")[0].strip()
        if re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
            where = f"the recipe {', '.join(files)}"
            names.resolve(name, sorted(read_before), kind="macro", where=where)
    if "gin.REQUIRED" in gin.config_str():
        unset = sorted(set(re.findall(r"^(\w+) = %?gin\.REQUIRED", gin.config_str(), re.MULTILINE)))
        raise UserError(f"The recipe wants values for {', '.join(unset)}: give them as --gin.NAME=VALUE.")


def find(file: str) -> Path:
    """Returns a recipe's path: as given, or below the recipes that come with elm_jax."""
    inside = file.removeprefix("gin/")
    for candidate in (Path(file), CHECKOUT / inside, PACKAGED / inside):
        if candidate.is_file():
            return candidate
    shipped = sorted(
        str(path.relative_to(root.parent)) for root in (CHECKOUT,) for path in root.rglob("*.gin")
    )
    shipped += [f"gin/{path.relative_to(PACKAGED)}" for path in PACKAGED.rglob("*.gin")]
    near = names.near_matches(file, shipped)
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


def _first_line(error: Exception) -> str:
    return (
        next(line.strip() for line in str(error).splitlines() if line.strip())
        if str(error).strip()
        else type(error).__name__
    )


assert importlib.util  # imported for gin, see above
