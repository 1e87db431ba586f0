"""The house: a room imports only from floors below its own, never from a sibling."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "elm_jax"
FLOORS = [
    ["errors", "axes", "cache", "records", "names", "storage", "hub"],
    ["aot"],
    [
        "models",
        "routing",
        "merging",
        "prompting",
        "reporting/metrics",
        "reporting/significance",
        "reporting/written",
    ],
    ["scoring", "training"],
    ["tasks", "weights", "library", "reporting"],
    ["engine", "t5x_door"],
    ["runs"],
    ["planning"],
    ["cli", "lm_eval_door"],
]
# Floor 0 is single files, and they may build on one another in this order.
WORDS = FLOORS[0]


def room_of(module: str) -> str:
    """`reporting.metrics` -> `reporting/metrics` where the file has a floor of its own, else `reporting`."""
    parts = module.split(".")
    path = "/".join(parts[:2])
    return path if any(path in floor for floor in FLOORS) else parts[0]


def floor_of(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def imports_of(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("elm_jax"):
            inside = node.module.removeprefix("elm_jax").lstrip(".")
            found |= {f"{inside}.{alias.name}".lstrip(".") for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix("elm_jax.")
                for alias in node.names
                if alias.name.startswith("elm_jax.")
            }
    return found


FILES = sorted(file for file in PACKAGE.rglob("*.py") if file.parent != PACKAGE or file.stem != "__init__")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down_only(file):
    own = room_of(".".join(file.relative_to(PACKAGE).with_suffix("").parts))
    for module in imports_of(file):
        other = room_of(module)
        if other == own:
            continue
        if own in WORDS:
            assert other in WORDS[: WORDS.index(own)], f"{own} may not import {other}"
        else:
            assert floor_of(other) < floor_of(own), f"{own} may not import {other}"
