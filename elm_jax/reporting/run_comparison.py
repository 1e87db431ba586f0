"""Run comparison: two runs method by method, on the same tasks and rows.

Differences are the second run's minus the first's. Intervals and p values are those of the report: rows are
drawn anew as clusters across prompts, McNemar counts each row once, Holm corrects for all pairs of methods.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.records import TaskScores
from elm_jax.reporting import metrics, significance, summary, table_layout
from elm_jax.reporting.formatting import MISSING, format_interval, format_percent, format_points
from elm_jax.reporting.metrics import Accuracy
from elm_jax.reporting.records import Comparison
from elm_jax.reporting.summary import PairedTest, ScoresByMethod
from elm_jax.reporting.tables import (
    COMPARISON_HEADER,
    LABEL_MARKS,
    Table,
    comparison_cells,
    comparisons_note,
    describe_limit,
)


@dataclass(frozen=True)
class DatasetDifference:
    """A method of two runs on one dataset; the fields are those of `significance.PairedDifference`."""

    task: str
    a: str
    b: str
    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class RunComparison(Comparison):
    """A method of the second run, `a`, with one of the first, `b`.

    Attributes:
        first: the macro mean of the first run.
        second: the macro mean of the second run.
        by_task: the difference on each dataset; its p values are not corrected.
        limit: rows of a task that were evaluated at most; None is all.
    """

    first: Accuracy
    second: Accuracy
    by_task: tuple[DatasetDifference, ...]
    limit: int | None = None


def compare_methods(
    first: ScoresByMethod,
    second: ScoresByMethod,
    pairs: Sequence[tuple[str, str]] | None = None,
    *,
    run_names: tuple[str, str] = ("the first run", "the second run"),
    labels: Mapping[str, str] | None = None,
    test: PairedTest | None = None,
) -> tuple[RunComparison, ...]:
    """Returns one row for each pair of methods: means, difference, paired tests, and the same by dataset.

    Args:
        first: method -> its tasks, in the first run.
        second: the same in the second run.
        pairs: a method of each; default: those that both have, but those trained on every dataset.
        run_names: the runs' names in errors.
        labels: which labels methods saw; see `MethodMean`.
        test: of each difference.

    Raises:
        UserError: no method in common, an unknown one, other tasks, other rows, other labels.
    """
    test = test or PairedTest()
    sides = []
    for a, b in _common_methods(first, second, run_names) if pairs is None else pairs:
        names.resolve(a, first, kind="method", where=run_names[0])
        names.resolve(b, second, kind="method", where=run_names[1])
        _require_same_rows(first[a], second[b], run_names)
        new, old = summary.common_zero_shot(second[b], first[a])
        if new:
            sides.append((new, old))
        elif pairs is not None:
            raise UserError(
                f"Expected a task that neither {a!r} nor {b!r} was trained on, got none. Fix: name other "
                "methods with --method."
            )
    if not sides:
        raise UserError(
            "Expected tasks whose datasets the methods were not trained on, got none that both runs were "
            "evaluated on. Fix: evaluate both on unseen ones."
        )
    compared = summary.compare_pairs(sides, labels or {}, test)
    return tuple(
        RunComparison(
            **vars(comparison),
            first=metrics.macro_mean(old),
            second=metrics.macro_mean(new),
            by_task=_by_dataset(new, old, test),
        )
        for comparison, (new, old) in zip(compared, sides, strict=True)
    )


def comparison_tables(rows: Sequence[RunComparison]) -> list[Table]:
    """Returns the comparison as two tables: means with their difference, and differences by dataset."""
    labelled = [(row.a if row.a == row.b else f"{row.b} → {row.a}") + LABEL_MARKS[row.labels] for row in rows]
    means = tuple(
        (name, _format_accuracy(row.first), _format_accuracy(row.second), *comparison_cells(row))
        for name, row in zip(labelled, rows, strict=True)
    )
    columns = table_layout.task_columns(own.task for row in rows for own in row.by_task)
    cells = [{own.task: own for own in row.by_task} for row in rows]
    by_task = tuple(
        (name, *(_format_difference(own.get(column.task)) for column in columns))
        for name, own in zip(labelled, cells, strict=True)
    )
    limited = describe_limit(rows[0].limit)
    note = comparisons_note(rows, ("the second run", "the first")) + limited
    return [
        Table("Second run − first run", ("method", "first", "second", *COMPARISON_HEADER), means, note),
        Table(
            "Difference by task",
            ("method", *(column.name for column in columns)),
            by_task,
            "Percentage points with 95 % intervals, not corrected for their number." + limited,
        ),
    ]


def _common_methods(
    first: ScoresByMethod, second: ScoresByMethod, run_names: tuple[str, str]
) -> list[tuple[str, str]]:
    common = [(method, method) for method in first if method in second]
    if not common:
        raise UserError(
            f"Expected a method that both runs have, got {', '.join(first)} in {run_names[0]} and "
            f"{', '.join(second)} in {run_names[1]}. Fix: name two with --method ONE=OTHER."
        )
    return common


def _by_dataset(
    new: Sequence[TaskScores], old: Sequence[TaskScores], test: PairedTest
) -> tuple[DatasetDifference, ...]:
    old_scores = metrics.group_by_dataset(old)
    return tuple(
        DatasetDifference(
            dataset,
            **vars(
                significance.paired_difference(
                    own,
                    old_scores[dataset],
                    over=test.over if len(own) > 1 else "rows",
                    samples=test.samples,
                    seed=test.seed,
                )
            ),
        )
        for dataset, own in metrics.group_by_dataset(new).items()
    )


def _format_accuracy(mean: Accuracy) -> str:
    return f"{format_percent(mean.accuracy)} {format_interval(mean.low, mean.high)}"


def _format_difference(row: DatasetDifference | None) -> str:
    if row is None:
        return MISSING
    return f"{format_points(row.difference)} {format_interval(row.low, row.high, show=format_points)}"


def _require_same_rows(a: Sequence[TaskScores], b: Sequence[TaskScores], run_names: tuple[str, str]) -> None:
    """Raises a UserError if two methods were not evaluated on the same tasks, rows and labels."""
    tasks_a, tasks_b = ({task.task: task for task in side} for side in (a, b))
    differing = sorted(tasks_a.keys() ^ tasks_b.keys())
    if differing:
        only = run_names[0] if differing[0] in tasks_a else run_names[1]
        raise UserError(
            f"Expected the same tasks in both runs, got {differing[0]!r} in {only} alone ({len(differing)} "
            "such tasks). Fix: evaluate both on the same tasks."
        )
    for task, own in tasks_a.items():
        sides = (own, tasks_b[task])
        labels_a, labels_b = (dict(zip(side.row_ids, side.labels, strict=True)) for side in sides)
        unmatched = sorted(labels_a.keys() ^ labels_b.keys())
        if unmatched:
            only = run_names[0] if unmatched[0] in labels_a else run_names[1]
            raise UserError(
                f"Expected the same rows of {task!r} in both runs, got row {unmatched[0]!r} in {only} alone "
                f"({len(unmatched)} such rows). Fix: evaluate both with the same data and --limit."
            )
        for row, label in labels_a.items():
            if label != labels_b[row]:
                raise UserError(
                    f"Expected the same labels of {task!r} in both runs, got {label} for row {row!r} in "
                    f"{run_names[0]} and {labels_b[row]} in {run_names[1]}. Fix: evaluate both on the same "
                    "data."
                )
