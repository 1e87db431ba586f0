"""`elm report`: what was scored in a workspace, as tables, tests and a page; two runs compared."""

import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from etils import epath

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.records import Report, Selection, TaskScores
from elm_jax.reporting import report_files, run_comparison, summary
from elm_jax.reporting.metrics import CorrectCount
from elm_jax.session.workspace import Workspace

BASELINE = "base"
NO_REPORT = (
    "A report is wanted in {!r}, but nothing was evaluated there yet. "
    "Run `elm evaluate` or `elm quickstart` first."
)


def write_run_report(
    scores: Sequence[TaskScores],
    pairs: Sequence[tuple[str, str]],
    selections: Sequence[Selection],
    matrix: Iterable[CorrectCount],
    *,
    workspace: Workspace,
    environment: Mapping[str, Any],
    families: Mapping[str, str],
    methods: Sequence[Mapping[str, Any]] = (),
    generated: Sequence[Mapping[str, Any]] = (),
    examples: Sequence[Mapping[str, Any]] = (),
) -> tuple[Report, Mapping[str, epath.Path]]:
    """Writes the report of one run and returns it with the paths of its files by ending.

    The other arguments are those of `reporting.summary.summarise`; `matrix` is every expert on every task.
    """
    scored = {task.method for task in scores}
    bare = next((told["method"] for told in methods if told["router"] == BASELINE), BASELINE)
    made = summary.build_report(
        scores,
        selections,
        {**describe_environment(), **environment},
        pairs=pairs,
        baseline=bare if bare in scored else None,
        experts_matrix=matrix,
        families=families,
        methods=methods,
        generated=generated,
        examples=examples,
    )
    return made, report_files.write_report(made, workspace.report, scores)


def rebuild_report(workspace: Workspace) -> tuple[Report, Mapping[str, epath.Path]]:
    """Reads a workspace's report and writes its pages anew from the same numbers."""
    if not (workspace.report / "report.json").exists():
        raise UserError(NO_REPORT.format(str(workspace.root)))
    made = report_files.read_report(workspace.report)
    return made, report_files.write_report(made, workspace.report)


def compare_runs(
    first: storage.PathLike, second: storage.PathLike, methods: Sequence[str] = ()
) -> tuple[Mapping[str, Any], ...]:
    """Compares two evaluated runs, or folders of reports; differences are the second's minus the first's.

    `methods` names those to compare, all that both have without it; ONE=OTHER compares method ONE of the
    first run with OTHER of the second. Raises `UserError` where tasks, rows or labels differ, saying which.
    """
    (old, old_rows), (new, new_rows) = _read(first), _read(second)
    named = [method.partition("=") for method in methods]
    pairs = [(one, other if equals else one) for one, equals, other in named]
    labels = {row["method"]: row["labels"] for row in (*old.methods, *new.methods)}
    called = repr(str(first)), repr(str(second))
    return run_comparison.compare_methods(old_rows, new_rows, pairs or None, called=called, labels=labels)


def _read(where: storage.PathLike) -> tuple[Report, Mapping[str, Sequence[TaskScores]]]:
    """Returns a report and what every method got right, from a run's directory or its report's folder."""
    root = Workspace.open(where).root
    place = root if (root / "report.json").exists() else Workspace(root).report
    if not (place / "report.json").exists():
        raise UserError(NO_REPORT.format(str(root)))
    made = report_files.read_report(place)
    return made, report_files.read_rows(place, made)


def describe_environment() -> dict[str, Any]:
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
