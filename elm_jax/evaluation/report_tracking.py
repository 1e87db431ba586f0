"""Tracking of reports: an evaluation's accuracies in TensorBoard, Weights & Biases or a tracker of one's own.

A method of an evaluation is a series with one point: `accuracy/macro_mean`, `accuracy/micro_mean` and
`accuracy/DATASET` as fractions, and `MEASURE/TASK` in percent for tasks that are answered in free text.
"""

from collections.abc import Sequence

from elm_jax.reporting.records import Report
from elm_jax.session.workspace import Workspace
from elm_jax.telemetry import trackers
from elm_jax.telemetry.trackers import MetricPoint


def list_points(report: Report, evaluation: str) -> list[MetricPoint]:
    """Returns the point of each method of a report; series are called `evaluations/EVALUATION/METHOD`."""
    values: dict[str, dict[str, float]] = {row.method: {} for row in report.methods}
    for mean in report.means:
        named = {"accuracy/macro_mean": mean.macro, "accuracy/micro_mean": mean.micro}
        values[mean.method] |= {name: value for name, value in named.items() if value is not None}
    for row in report.tasks:
        values[row.method][f"accuracy/{row.task}"] = row.accuracy
    for row in report.generated:
        values[row.method][f"{row.measure}/{row.task}/{row.prompt}"] = row.value
    return [MetricPoint(f"evaluations/{evaluation}/{method}", 0, own) for method, own in values.items()]


def track_report(workspace: Workspace, report: Report, evaluation: str, names: Sequence[str]) -> None:
    """Writes a report's accuracies to trackers.

    Args:
        workspace: the run's, whose logs trackers write to.
        report: with the accuracies.
        evaluation: its name.
        names: of trackers.

    Raises:
        UserError: there is no such tracker, or a package that it needs is not installed.
    """
    points = list_points(report, evaluation)
    settings = {"title": "evaluate", "evaluation": evaluation, "limit": report.environment.get("limit")}
    for name in names:
        with trackers.open_tracker(name, workspace.logs, settings) as write:
            write(0, points, [point.series for point in points])
