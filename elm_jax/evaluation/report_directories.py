"""Where reports lie: the latest in `report`, others in `reports/NAME`, so that none is overwritten."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from etils import epath

from elm_jax import names, storage
from elm_jax.errors import UserError
from elm_jax.reporting import report_files
from elm_jax.reporting.records import Report
from elm_jax.reporting.tables import Table
from elm_jax.session.workspace import Workspace

LATEST = "latest"
"""What the report in `report` is called in lists."""


@dataclass(frozen=True)
class StoredReport:
    """A report of a run.

    Attributes:
        name: "latest", or the name that it was given.
        directory: Where it lies.
        report: Its numbers; None if its file is damaged.
    """

    name: str
    directory: epath.Path
    report: Report | None

    def __repr__(self) -> str:
        return f"StoredReport({self.name!r}, {self.report!r})"


def require_name(name: str | None) -> None:
    """Raises a UserError if no evaluation can have the name; None is the latest."""
    if name is not None and (not name or name == LATEST or re.search(r"[/\\]", name)):
        raise UserError(
            f"Expected a name for an evaluation without slashes and other than {LATEST!r}, got {name!r}. "
            "Fix: choose another."
        )


def find_directory(workspace: Workspace, name: str | None) -> epath.Path:
    """Returns the directory of a report by its name; of the latest by default.

    Raises:
        UserError: If no directory can have the name.
    """
    if name is None or name == LATEST:
        return workspace.report
    return workspace.reports / names.directory_name(name)


def find_evaluation(name: str, run: storage.PathLike) -> tuple[Workspace, str | None]:
    """Returns the workspace and the name of an evaluation that a user names; None is the latest.

    Args:
        name: A run's directory, a report's, or an evaluation of `run`.
        run: The run whose evaluations may be called by their names alone.

    Raises:
        UserError: If there is none of the name.
    """
    place = storage.path(name)
    if not place.is_dir():
        here = Workspace.open(run) if storage.path(run).is_dir() else None
        known = [each.name for each in list_reports(here)] if here else []
        if here and (name in known or known):
            return here, names.resolve(name, known, kind="evaluation", where=f"{str(here.root)!r}")
        return Workspace.open(name), None  # raises
    if report_files.is_report(place) and place.parent.name == "reports":
        return Workspace.open(place.parent.parent), names.from_directory_name(place.name)
    if report_files.is_report(place) and place.name == "report":
        return Workspace.open(place.parent), None
    workspace = Workspace.open(name)
    return workspace, _find_latest(workspace)


def _find_latest(workspace: Workspace) -> str | None:
    """Returns the name of the evaluation that was written last if all of a run's have names."""
    stored = [] if report_files.is_report(workspace.report) else list_reports(workspace)
    return max(stored, key=lambda each: report_files.written_at(each.directory)).name if stored else None


def reports_table(stored: Sequence[StoredReport]) -> Table:
    """Returns a table of a run's evaluations: name, time, methods, tasks and limit."""
    rows = []
    for each in stored:
        written = datetime.fromtimestamp(report_files.written_at(each.directory), UTC)
        if each.report is None:
            rows.append((each.name, f"{written:%Y-%m-%d %H:%M}", "its report is damaged", "", ""))
            continue
        tasks = {row.task for row in (*each.report.rows, *each.report.generated)}
        methods = ", ".join(row.method for row in each.report.methods)
        limit = each.report.environment.get("limit")
        rows.append((each.name, f"{written:%Y-%m-%d %H:%M}", methods, str(len(tasks)), str(limit or "all")))
    return Table("Evaluations", ("name", "time (UTC)", "methods", "tasks", "rows a task"), tuple(rows))


def require_report(workspace: Workspace, name: str | None = None) -> epath.Path:
    """Returns the directory of a report that is there.

    Raises:
        UserError: If nothing was evaluated in the workspace, or nothing under that name.
    """
    directory = find_directory(workspace, name)
    if report_files.is_report(directory):
        return directory
    if name is not None:
        known = [each.name for each in list_reports(workspace)]
        names.resolve(name, known, kind="evaluation", where=f"{str(workspace.root)!r}")
    raise UserError(
        f"Expected a report in {str(workspace.root)!r}, got none. Fix: run `elm evaluate` or "
        "`elm quickstart` first."
    )


def make_room(workspace: Workspace, name: str | None, report: Report) -> epath.Path:
    """Returns the directory that a new report is to lie in; one that is there with other results is kept.

    Args:
        workspace: The run's.
        name: The report's. By default it is the latest: an earlier one moves to a name of its own, its time.
        report: The new one.

    Raises:
        UserError: If there is one of that name with other results, or if no evaluation can have the name.
    """
    require_name(name)
    directory = find_directory(workspace, name)
    if not report_files.is_report(directory) or _is_same(directory, report):
        return directory
    if name is not None:
        raise UserError(
            f"Expected a new name for an evaluation with other results, got {name!r}, which is there. Fix: "
            f"choose another with --name, or delete {str(directory)!r}. Scores are kept."
        )
    written = datetime.fromtimestamp(report_files.written_at(directory), UTC)
    stem = written.strftime("%Y-%m-%d_%H-%M-%S")
    taken = {each.name for each in workspace.reports.iterdir()} if workspace.reports.is_dir() else set()
    free = next(each for each in (stem, *(f"{stem}_{n}" for n in range(2, 10_000))) if each not in taken)
    storage.writable_directory(workspace.reports)
    directory.rename(workspace.reports / free)
    return directory


def _is_same(directory: epath.Path, report: Report) -> bool:
    """Says whether the report in a directory has the results of another; a damaged one has none to keep."""
    earlier = _read_if_whole(directory)
    if earlier is None:
        return True
    parts = ("rows", "generated", "selections", "comparisons")
    return all(getattr(earlier, part) == getattr(report, part) for part in parts)


def list_reports(workspace: Workspace) -> Sequence[StoredReport]:
    """Returns the reports of a run, the latest first, then by name."""
    named = sorted(workspace.reports.iterdir()) if workspace.reports.is_dir() else []
    places = [(LATEST, workspace.report), *((names.from_directory_name(each.name), each) for each in named)]
    return [
        StoredReport(name, place, _read_if_whole(place))
        for name, place in places
        if report_files.is_report(place)
    ]


def _read_if_whole(directory: epath.Path) -> Report | None:
    """Returns the report in a directory, or None: a damaged one disturbs no other."""
    try:
        return report_files.read_report(directory)
    except UserError:
        return None
