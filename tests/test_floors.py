"""The house: imports go down only, between rooms and inside them, and no room outgrows the others."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "elm_jax"
FLOORS = [
    ["controls"],
    ["errors", "axes", "cache", "extras", "moved", "switches"],
    ["buckets", "frames", "names", "ranges", "safetensors_header"],
    ["records", "storage"],
    ["hub", "locks", "schema"],
    ["aot"],
    ["models", "reporting"],
    ["prompting", "tokenizers", "weights"],
    ["tasks", "telemetry", "scoring"],
    ["launch", "data"],
    ["session"],
    ["experts"],
    ["training"],
    ["statistics"],
    ["merging"],
    ["routing"],
    ["evaluation"],
    ["pipelines"],
    ["planning"],
    ["cli", "lm_eval", "t5x"],
    ["__main__"],
]
"""From the ground up; rooms of one floor do not import each other. docs/architecture.md draws them."""
LARGEST_SHARE = 0.12

FILES = {
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts): file
    for file in sorted(PACKAGE.rglob("*.py"))
    if file.stem != "__init__"
}


def imports_of(file: Path) -> set[str]:
    """Returns the modules of the package that a file imports, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("elm_jax"):
            inside = node.module.removeprefix("elm_jax").lstrip(".")
            named = {f"{inside}.{alias.name}".lstrip(".") for alias in node.names}
            found |= {name if name in FILES else inside for name in named}
        elif isinstance(node, ast.Import):
            found |= {
                each.name.removeprefix("elm_jax.") for each in node.names if each.name[:8] == "elm_jax."
            }
    return found


def floor_of(module: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if module.partition(".")[0] in floor)


@pytest.mark.parametrize("module", FILES)
def test_imports_go_down_only(module):
    room = module.partition(".")[0]
    for other in imports_of(FILES[module]):
        if other.partition(".")[0] != room:
            assert floor_of(other) < floor_of(module), f"{module} may not import {other}"


def test_no_files_import_each_other_in_a_circle():
    TopologicalSorter({name: imports_of(file) & FILES.keys() for name, file in FILES.items()}).prepare()


def test_no_room_is_larger_than_the_others_allow():
    lines: dict[str, int] = {}
    for module, file in FILES.items():
        room = module.partition(".")[0]
        lines[room] = lines.get(room, 0) + len(file.read_text().splitlines())
    assert max(lines.values()) <= LARGEST_SHARE * sum(lines.values()), lines
