"""`elm report`: what was scored in a workspace, as tables, intervals, paired tests and a page."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from etils import epath

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.records import Report, Selection, TaskScores
from elm_jax.reporting import summary
from elm_jax.runs.workspace import Workspace


def report(
    scores: Sequence[TaskScores],
    pairs: Sequence[tuple[str, str]],
    selections: Sequence[Selection],
    matrix: Sequence[TaskScores],
    *,
    workspace: Workspace,
    environment: Mapping[str, Any],
    families: Mapping[str, str],
) -> tuple[Report, Mapping[str, epath.Path]]:
    """Writes the report of one run and returns it with the paths of its files by ending."""
    made = summary.summarise(
        scores,
        selections,
        {**machine(), **environment},
        pairs=pairs,
        experts_matrix=matrix,
        families=families,
    )
    return made, summary.write_report(made, workspace.report)


def again(workspace: Workspace) -> tuple[Report, Mapping[str, epath.Path]]:
    """Reads a workspace's report and writes its pages anew from the same numbers."""
    if not (workspace.report / "report.json").exists():
        raise UserError(
            f"A report is wanted in {str(workspace.root)!r}, but nothing was evaluated there yet. "
            "Run `elm evaluate` or `elm quickstart` first."
        )
    made = summary.read_report(workspace.report)
    return made, summary.write_report(made, workspace.report)


def machine() -> dict[str, Any]:
    """Returns what the numbers were measured with: versions, devices, fingerprint of the package's state."""
    import jax

    packages = ("elm_jax", "jax", "flax", "optax", "numpy")
    return {
        "python": platform.python_version(),
        "machine": platform.platform(),
        "devices": [str(device) for device in jax.devices()],
        "packages": {name: version(name) for name in packages},
    }


def store_seconds(workspace: Workspace, seconds: Mapping[str, float]) -> dict[str, float]:
    """Adds the seconds of this call's stages to those of earlier calls on the same workspace."""
    file = workspace.root / "seconds.json"
    before = storage.read_json(file, what="Times")["seconds"] if file.exists() else {}
    total = {name: round(before.get(name, 0.0) + seconds.get(name, 0.0), 2) for name in {**before, **seconds}}
    storage.write_json(file, {"seconds": total})
    return total
