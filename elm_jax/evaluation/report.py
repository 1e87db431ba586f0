"""`elm report`: what was scored in a workspace, as tables, tests and a page; two runs compared."""

import contextlib
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from etils import epath

from elm_jax import locks, schema, storage
from elm_jax.data import identity, missing_rows, task_rows, task_selection
from elm_jax.errors import UserError
from elm_jax.evaluation import report_directories
from elm_jax.experts import lookup, training_rows
from elm_jax.experts.lookup import library_finder
from elm_jax.records import TaskScores
from elm_jax.reporting import report_files, run_comparison, summary
from elm_jax.reporting.records import Report
from elm_jax.reporting.run_comparison import RunComparison
from elm_jax.reporting.significance import Over
from elm_jax.reporting.summary import PairedTest, ReportInputs
from elm_jax.session import opening
from elm_jax.session.workspace import Workspace

BASELINE = "base"


def write_run_report(
    workspace: Workspace,
    inputs: ReportInputs,
    pairs: Sequence[tuple[str, str]],
    *,
    name: str | None = None,
) -> tuple[Report, Mapping[str, epath.Path]]:
    """Writes the report of one run.

    Args:
        workspace: the run's.
        inputs: what the report is made of; this machine is added to its environment.
        pairs: the methods to compare.
        name: of the evaluation. Default: it becomes the latest, and an earlier one is kept.

    Returns:
        The report, and the paths of its files by ending.

    Raises:
        UserError: an evaluation of that name has other results.
    """
    scored = {task.method for task in inputs.scores}
    baseline = next((row.method for row in inputs.methods if row.router == BASELINE), BASELINE)
    environment = {**describe_call(), **describe_machine(), **inputs.environment}
    inputs = replace(inputs, environment=environment)
    report = summary.build_report(inputs, pairs=pairs, baseline=baseline if baseline in scored else None)
    directory = report_directories.make_room(workspace, name, report)
    return report, report_files.write_report(report, directory, inputs.scores, inputs.made_of)


def rebuild_report(workspace: Workspace, name: str | None = None) -> tuple[Report, Mapping[str, epath.Path]]:
    """Reads a report of a workspace, by default the latest, and writes its pages anew from the same numbers.

    Pages that cannot be written, or that an evaluation is about to write, stay as they are.

    Raises:
        UserError: nothing was evaluated in the workspace.
    """
    directory = report_directories.require_report(workspace, name)
    report = report_files.read_report(directory)
    if storage.is_writable(workspace.root) and storage.is_writable(directory):
        lookup.remove_leftovers(workspace)
        with locks.attempt(workspace.lock_file("evaluate"), "elm report") as held:
            if held:
                storage.remove_unfinished(directory)
                return report, report_files.write_report(report, directory)
    return report, report_files.report_paths(directory)


def compare_over_prompts(workspace: Workspace, name: str | None = None) -> Report:
    """Returns a report, by default the latest, with comparisons that hold for prompts like its own.

    No file is written.

    Raises:
        UserError: nothing was evaluated in the workspace; no dataset has two prompts.
    """
    report, scores = _read(report_directories.require_report(workspace, name))
    test = PairedTest(over="prompts")
    labels = {row.method: row.labels for row in report.methods}
    scores = summary.clear_seen_for_own_method(scores, report.methods)
    pairs = [(scores[row.a], scores[row.b]) for row in report.comparisons]
    return replace(
        report,
        comparisons=summary.compare_pairs(pairs, labels, test),
        tied_with_best=summary.find_tied_with_best(scores, labels, test),
    )


def describe_changes(workspace: Workspace, evaluation: str | None = None) -> list[str]:
    """Returns a sentence for each task and each expert that is another now than when it was evaluated.

    None for tasks whose rows are not here, and for what was evaluated before inputs were noted.
    """
    noted = report_files.read_made_of(report_directories.find_directory(workspace, evaluation))
    if not noted:
        return []
    try:
        reading = opening.load_data_settings(workspace.root)
    except UserError:  # a report can be read without its base
        return []
    changes = {
        name: _describe_changed_task(name, value, reading) for name, value in noted.get("tasks", {}).items()
    }
    home_of = library_finder(workspace)
    for name, checksum in noted.get("experts", {}).items():
        try:
            about = home_of(name).describe(name)
        except UserError:  # it was removed, so that its results are what is left of it
            continue
        if about.checksum != checksum:
            changes[name] = "it was trained or merged again"
        elif rows := training_rows.describe_changed_rows(about.spec, reading.source):
            changes[name] = f"{rows} of its training rows"
    return [f"{name} differs from when it was evaluated: {own}." for name, own in changes.items() if own]


def _describe_changed_task(name: str, noted: Any, reading: opening.DataSettings) -> str:
    """Returns what differs between a task's rows or tokens now and then; "" if nothing, or if not known."""
    before = identity.from_json(noted)
    if before is None:
        return ""
    try:
        task = task_selection.resolve_task(name, reading.source)
        source = identity.restore_source(before, task, reading.source)
        tokens = identity.identify_tokens(reading.tokenizer, reading.lengths)
        now = replace(before, settings={**identity.identify_settings(task, source), **tokens})
        if now != before and missing_rows.is_here(task, source):
            examples = task_rows.load_examples(task, source)
            now = identity.identify_task(task, source, examples, reading.tokenizer, reading.lengths)
    except UserError:
        return ""
    return identity.describe_changes(before, now)


def compare_runs(
    first: storage.PathLike, second: storage.PathLike, methods: Sequence[str] = (), *, over: Over = "rows"
) -> tuple[RunComparison, ...]:
    """Compares two evaluated runs; differences are the second's minus the first's.

    Args:
        first: the directory of a run, or the folder of its report.
        second: the same.
        methods: those to compare; ONE=OTHER compares method ONE of the first run with OTHER of the second.
            Default: all that both have.
        over: what differences are to hold over; see `significance.paired_difference`.

    Raises:
        UserError: tasks, rows or labels differ; the message says which.
    """
    (old, old_rows), (new, new_rows) = _read(first), _read(second)
    old_rows = summary.clear_seen_for_own_method(old_rows, old.methods)
    new_rows = summary.clear_seen_for_own_method(new_rows, new.methods)
    named = [method.partition("=") for method in methods]
    pairs = [(one, other if equals else one) for one, equals, other in named]
    labels = {row.method: row.labels for row in (*old.methods, *new.methods)}
    run_names = repr(str(first)), repr(str(second))
    compared = run_comparison.compare_methods(
        old_rows, new_rows, pairs or None, run_names=run_names, labels=labels, test=PairedTest(over=over)
    )
    limit = old.environment.get("limit", new.environment.get("limit"))  # of both: their rows are the same
    return tuple(replace(row, limit=limit) for row in compared)


def describe_call() -> dict[str, Any]:
    """Returns when and by which command a report was made, and the commit of the code in a checkout."""
    about = {
        "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
    commit = _read_commit(Path(__file__).parents[2] / ".git")
    return {**about, "commit": commit} if commit else about


def _read_commit(git: Path) -> str:
    """Returns the commit that a checkout is at, from git's own files; "" where there is none."""
    try:
        if git.is_file():  # of a worktree: it names the directory
            git = Path(git.read_text().partition("gitdir:")[2].strip())
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        common = git / "commondir"
        shared = git / common.read_text().strip() if common.is_file() else git
        reference = head.removeprefix("ref: ")
        if (shared / reference).is_file():
            return (shared / reference).read_text().strip()
        packed = (line.split() for line in (shared / "packed-refs").read_text().splitlines())
        return next((line[0] for line in packed if line[1:] == [reference]), "")
    except (OSError, UnicodeDecodeError):
        return ""


def describe_machine() -> dict[str, Any]:
    """Returns what the numbers were measured with: versions and devices."""
    import jax

    packages = ("elm_jax", "jax", "flax", "optax", "numpy")
    return {
        "python": platform.python_version(),
        "machine": platform.platform(),
        "devices": [str(device) for device in jax.devices()],
        "packages": {name: version(name) for name in packages},
    }


@dataclass(frozen=True)
class _SecondsForm(schema.FileForm):
    seconds: Mapping[str, Annotated[float, Ge(0)]]


def add_seconds(workspace: Workspace, seconds: Mapping[str, float]) -> dict[str, float]:
    """Adds the seconds of this call's stages to those of earlier calls on the same workspace."""
    file = workspace.root / "seconds.json"
    before: Mapping[str, float] = {}
    if file.exists():
        with contextlib.suppress(UserError):  # a history that is damaged begins anew
            before = schema.read(file, _SecondsForm, what="Times", fix="delete it").seconds
    total = {name: round(before.get(name, 0.0) + seconds.get(name, 0.0), 2) for name in {**before, **seconds}}
    storage.write_json(file, {"seconds": total})
    return total


def _read(where: storage.PathLike) -> tuple[Report, Mapping[str, Sequence[TaskScores]]]:
    """Returns a report and what every method got right, from a run's directory or its report's folder."""
    workspace = Workspace.open(where)
    root = workspace.root
    folder = root if report_files.is_report(root) else report_directories.require_report(workspace)
    report = report_files.read_report(folder)
    return report, report_files.read_rows(folder, report)
