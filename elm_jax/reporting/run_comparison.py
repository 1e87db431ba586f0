"""Versus: two runs compared method by method, on the same tasks and rows.

Differences are the second run's minus the first's. Intervals and p values are those of the report: rows are
drawn anew as clusters across prompts, McNemar counts each row once, Holm corrects for all pairs of methods.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.records import TaskScores
from elm_jax.reporting import metrics, significance, summary, table_layout
from elm_jax.reporting.tables import (
    COMPARISON_HEADER,
    LABEL_MARKS,
    Table,
    comparison_cells,
    comparisons_note,
    interval,
    percent,
    points,
)

Methods = Mapping[str, Sequence[TaskScores]]


def compare_methods(
    first: Methods,
    second: Methods,
    pairs: Sequence[tuple[str, str]] | None = None,
    *,
    called: tuple[str, str] = ("the first run", "the second run"),
    labels: Mapping[str, str] | None = None,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[dict[str, Any], ...]:
    """Returns one row for each pair of methods: means, difference, paired tests, and the same by dataset.

    `first` and `second` map methods to their tasks; `pairs` names a method of each, without it those that
    both have, but those trained on every dataset; `called` are the runs' names in errors; `labels` are those
    that methods saw, as in a report.

    Raises:
      UserError: no method in common, an unknown one, other tasks, other rows, other labels.
    """
    named = pairs is not None
    if pairs is None:
        pairs = [(method, method) for method in first if method in second]
        if not pairs:
            raise UserError(
                f"Two runs are compared by the methods that both have, but {called[0]} has "
                f"{', '.join(first)}, {called[1]} has {', '.join(second)}. Name two with --method ONE=OTHER."
            )
    sides = []
    for a, b in pairs:
        names.resolve(a, first, kind="method", where=called[0])
        names.resolve(b, second, kind="method", where=called[1])
        _require_same(first[a], second[b], called)
        new, old = summary.common_zero_shot(second[b], first[a])
        if new:
            sides.append((new, old))
        elif named:
            raise UserError(
                f"{a!r} and {b!r} are to be compared where neither was trained on the task's dataset, but "
                "there is no such task. Name other methods with --method."
            )
    if not sides:
        raise UserError(
            "Methods are compared on tasks whose datasets they were not trained on, but none that both runs "
            "have was evaluated on such a task. Evaluate both on unseen ones."
        )
    done = summary.compare_pairs(sides, labels or {}, samples=samples, seed=seed)
    return tuple(
        {
            **row,
            "first": asdict(metrics.macro_mean(old)),
            "second": asdict(metrics.macro_mean(new)),
            "by_task": [
                {
                    "task": dataset,
                    **asdict(
                        significance.paired_difference(own, by_dataset[dataset], samples=samples, seed=seed)
                    ),
                }
                for dataset, own in metrics.by_dataset(new).items()
            ],
        }
        for row, (new, old) in zip(done, sides, strict=True)
        for by_dataset in [metrics.by_dataset(old)]
    )


def comparison_tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Returns the comparison as two tables: means with their difference, and differences by task."""
    named = [
        (row["a"] if row["a"] == row["b"] else f"{row['b']} → {row['a']}") + LABEL_MARKS[row["labels"]]
        for row in rows
    ]
    means = tuple(
        (
            name,
            *(
                f"{percent(row[side]['accuracy'])} {interval(row[side]['low'], row[side]['high'])}"
                for side in ("first", "second")
            ),
            *comparison_cells(row),
        )
        for name, row in zip(named, rows, strict=True)
    )
    columns = table_layout.task_columns(told["task"] for row in rows for told in row["by_task"])
    cells = [{told["task"]: told for told in row["by_task"]} for row in rows]
    by_task = tuple(
        (name, *(_difference(of.get(column.task)) for column in columns))
        for name, of in zip(named, cells, strict=True)
    )
    note = comparisons_note(rows, ("the second run", "the first"))
    return [
        Table("Second run − first run", ("method", "first", "second", *COMPARISON_HEADER), means, note),
        Table(
            "Difference by task",
            ("method", *(column.name for column in columns)),
            by_task,
            "Percentage points with 95 % intervals, not corrected for their number.",
        ),
    ]


def _difference(told: Mapping[str, Any] | None) -> str:
    if told is None:
        return "–"
    return f"{points(told['difference'])} {interval(told['low'], told['high'], show=points)}"


def _require_same(a: Sequence[TaskScores], b: Sequence[TaskScores], called: tuple[str, str]) -> None:
    """Refuses two methods that were not evaluated on the same tasks, rows and labels; says what differs."""
    of_a, of_b = ({task.task: task for task in side} for side in (a, b))
    differing = sorted(of_a.keys() ^ of_b.keys())
    wanted = "Two runs are compared on the same tasks and rows"
    if differing:
        only = called[0] if differing[0] in of_a else called[1]
        raise UserError(
            f"{wanted}, but task {differing[0]!r} was evaluated in {only} alone ({len(differing)} such "
            "tasks). Evaluate both on the same tasks."
        )
    for task, own in of_a.items():
        labels_a, labels_b = (dict(zip(side.row_ids, side.labels, strict=True)) for side in (own, of_b[task]))
        unmatched = sorted(labels_a.keys() ^ labels_b.keys())
        if unmatched:
            only = called[0] if unmatched[0] in labels_a else called[1]
            raise UserError(
                f"{wanted}, but in task {task!r} row {unmatched[0]!r} was evaluated in {only} alone "
                f"({len(unmatched)} such rows). Evaluate both with the same data and --limit."
            )
        for row, label in labels_a.items():
            if label != labels_b[row]:
                raise UserError(
                    f"{wanted}, but in task {task!r} row {row!r} has label {label} in {called[0]}, "
                    f"{labels_b[row]} in {called[1]}. Evaluate both on the same data."
                )
