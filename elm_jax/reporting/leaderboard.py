"""Leaderboard: the methods of several evaluations by their macro means, apart for each set of tasks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from elm_jax.errors import UserError
from elm_jax.reporting.formatting import format_interval, format_percent
from elm_jax.reporting.records import Report
from elm_jax.reporting.tables import LABEL_MARKS, Table


@dataclass(frozen=True)
class LeaderboardEntry:
    """One method of one evaluation.

    Attributes:
        evaluation: Its name.
        method: The method.
        labels: Which labels the method saw; see `MethodMean`.
        macro: Mean over datasets of the mean over prompts, a fraction.
        low: Lower end of its 95 % interval.
        high: Upper end.
        rows: Distinct rows behind it.
        tasks: What it was evaluated on: "dataset/prompt" and number of rows, which two entries must share to
            be compared.
        limit: Rows of a task that were evaluated at most; None is all.
    """

    evaluation: str
    method: str
    labels: str
    macro: float
    low: float
    high: float
    rows: int
    tasks: tuple[tuple[str, int], ...]
    limit: int | None


def rank_methods(reports: Iterable[tuple[str, Report]]) -> list[LeaderboardEntry]:
    """Returns the methods of reports, best first, those on the same tasks together, the most tasks first.

    Args:
        reports: Each with the name of its evaluation.

    Raises:
        UserError: No report has a mean.
    """
    entries = [
        LeaderboardEntry(
            evaluation=name,
            method=mean.method,
            labels=mean.labels,
            macro=mean.macro,
            low=mean.low or 0.0,
            high=mean.high or 0.0,
            rows=mean.n,
            tasks=tuple(
                sorted(
                    (f"{row.task}/{row.prompt}", row.n)
                    for row in report.rows
                    if row.method == mean.method and row.task not in mean.left_out
                )
            ),
            limit=report.environment.get("limit"),
        )
        for name, report in reports
        for mean in report.means
        if mean.macro is not None
    ]
    if not entries:
        raise UserError("Expected evaluations to rank, got none. Fix: run `elm evaluate` first.")
    return sorted(entries, key=lambda entry: (-len(entry.tasks), entry.tasks, -entry.macro, entry.method))


def leaderboard_tables(entries: Sequence[LeaderboardEntry]) -> list[Table]:
    """Returns a table for each set of tasks; entries of different tables do not compare."""
    groups: dict[tuple[tuple[str, int], ...], list[LeaderboardEntry]] = {}
    for entry in entries:
        groups.setdefault(entry.tasks, []).append(entry)
    return [_table(tasks, own) for tasks, own in groups.items()]


def _table(tasks: tuple[tuple[str, int], ...], entries: Sequence[LeaderboardEntry]) -> Table:
    datasets = {name.partition("/")[0] for name, _ in tasks}
    limits = [entry.limit for entry in entries if entry.limit is not None]
    limited = f" Limited to {min(limits)} rows a task." if limits else ""
    rows = tuple(
        (
            entry.method + LABEL_MARKS[entry.labels],
            entry.evaluation,
            format_percent(entry.macro),
            format_interval(entry.low, entry.high),
        )
        for entry in entries
    )
    title = f"Leaderboard of {len(datasets)} task{'s' if len(datasets) > 1 else ''}, {len(tasks)} prompts"
    caption = (
        f"Macro means in percent over {', '.join(sorted(datasets))}. Means of different evaluations are "
        f"paired by `elm report ONE OTHER`.{limited}"
    )
    return Table(title, ("method", "evaluation", "macro mean", "95 % interval"), rows, caption)
