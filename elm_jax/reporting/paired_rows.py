"""Pairs of outcomes: two methods on the same rows, each row one cluster across the prompts of its dataset."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from elm_jax.errors import UserError
from elm_jax.names import split_id
from elm_jax.records import TaskScores
from elm_jax.reporting.metrics import row_credits

RowDifferences = Mapping[str, Mapping[str, float]]
"""Task -> row id -> what one method counts in the row minus what the other counts."""


def pair_rows(a: Sequence[TaskScores], b: Sequence[TaskScores]) -> RowDifferences:
    """Returns task -> row id -> right under a minus right under b; refuses sides that do not match."""
    if not a or not b:
        raise UserError("Expected scores of both methods, got none of one.")
    name_a, name_b = repr(a[0].method), repr(b[0].method)
    sides = []
    for side in (a, b):
        tasks = {scores.task: scores for scores in side}
        if len(tasks) != len(side):
            raise UserError(f"Expected each task once, got one twice by {side[0].method!r}.")
        sides.append(tasks)
    of_a, of_b = sides
    for task in sorted(of_a.keys() ^ of_b.keys()):
        only = name_a if task in of_a else name_b
        raise UserError(
            f"Expected {name_a} and {name_b} on the same tasks, got {task!r} by {only} alone. Fix: score it "
            "for both, or leave it out of both."
        )
    return {task: _row_differences(of_a[task], of_b[task]) for task in of_a}


def _row_differences(a: TaskScores, b: TaskScores) -> dict[str, float]:
    sides = []
    for side in (a, b):
        columns = zip(side.row_ids, row_credits(side).tolist(), side.labels, strict=True)
        sides.append({row: (credit, label) for row, credit, label in columns})
    of_a, of_b = sides
    expected = f"Expected {a.method!r} and {b.method!r} on the same rows of {a.task!r}"
    unmatched = of_a.keys() ^ of_b.keys()
    if unmatched:
        first = min(unmatched)
        only = a.method if first in of_a else b.method
        raise UserError(
            f"{expected}, got row {first!r} by {only!r} alone ({len(unmatched)} such rows). Fix: score "
            "both on the same rows."
        )
    for row, (_, label) in of_a.items():
        if label != of_b[row][1]:
            raise UserError(
                f"{expected}, got labels {label} and {of_b[row][1]} in row {row!r}. Fix: score both on the "
                "same data."
            )
    return {row: credit - of_b[row][0] for row, (credit, _) in of_a.items()}


def group_tasks(differences: RowDifferences) -> dict[str, list[str]]:
    """Returns the tasks of each dataset."""
    datasets: dict[str, list[str]] = {}
    for task in differences:
        datasets.setdefault(split_id(task)[0], []).append(task)
    return datasets


def tabulate_rows(sides: Sequence[Sequence[Mapping[str, float]]]) -> Float[np.ndarray, "rows columns"]:
    """Returns one line a row: its differences under each prompt, side by side; then 1 for a prompt it has."""
    every = [row for prompt in sides[0] for row in prompt]
    ids = {row: index for index, row in enumerate(dict.fromkeys(every))}
    prompts = len(sides[0])
    lines = np.zeros((len(ids), (len(sides) + 1) * prompts))
    for number, side in enumerate(sides):
        for column, prompt in enumerate(side):
            at = [ids[row] for row in prompt]
            lines[at, number * prompts + column] = list(prompt.values())
            lines[at, len(sides) * prompts + column] = 1
    return lines
