"""Normalization: a cell's scores by another way than their sums, and what has to be scored for it.

Some ways compare a choice with what it scores after a premise in the place of its prompt
(`elm_jax.scoring.rank`). Answers after a premise are a cell of their own, which is scored and kept as any
other; rows with the same choices share it.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from elm_jax import storage
from elm_jax.data.task_selection import SEQIO
from elm_jax.errors import UserError
from elm_jax.evaluation.results_cache import Cell
from elm_jax.evaluation.tasks import EvaluationTask
from elm_jax.records import TaskScores, TaskSpec
from elm_jax.scoring import rank
from elm_jax.session.workspace import Run
from elm_jax.tasks import rendering
from elm_jax.tasks.data_source import Source


def premise_cells(
    run: Run, cells: Sequence[Cell], tasks: Mapping[str, EvaluationTask], normalization: str
) -> list[tuple[Cell, ...]]:
    """Returns, for each cell, those with premises for prompts that a normalization reads beside it.

    Raises:
        UserError: the normalization is none, or a task's template has no input without content.
    """
    way = rank.parse_normalization(normalization)
    premises: dict[str, tuple[str, ...]] = {}
    for task in dict.fromkeys(cell.task for cell in cells):
        contextual = way.name == "contextual"
        found = _content_free_inputs(tasks[task].spec, run.source) if contextual else (way.premise,)
        premises[task] = found if way.name in ("pmi", "contextual") else ()
    return [tuple(cell._replace(premise=each) for each in premises[cell.task]) for cell in cells]


def normalize_cell(
    cell: Cell,
    premises: Sequence[Cell],
    task: EvaluationTask,
    sums: Callable[[Cell], TaskScores],
    normalization: str,
) -> list[np.ndarray]:
    """Returns a cell's scores of a normalization, from its sums and those after premises."""
    rows = [task.prompts[row] for row in cell.rows] if cell.rows else task.prompts
    examples = task.examples_of(cell.rows)
    way, bare = rank.parse_normalization(normalization), [sums(each).scores for each in premises]
    return [
        rank.normalize_scores(
            way,
            np.asarray(scores),
            [len(answer) for answer in row.answers],
            example.choices,
            np.array([own[place] for own in bare]) if bare else None,
        )
        for place, (row, example, scores) in enumerate(zip(rows, examples, sums(cell).scores, strict=True))
    ]


def score_file_tag(cell: Cell, normalization: str) -> str:
    """Returns what tells a cell's file apart from that of its sums, fit to be a part of a file's name."""
    if cell.premise is not None:
        return f"premise_{storage.fingerprint(cell.premise)}" if cell.premise else "without_prompt"
    if ":" in normalization:
        return f"{normalization.partition(':')[0]}_{storage.fingerprint(normalization)}"
    return "" if normalization == "sum" else normalization


def _content_free_inputs(spec: TaskSpec, source: Source) -> tuple[str, ...]:
    if spec.group == SEQIO:
        raise UserError(
            f"Expected a task with a template for contextual calibration, got SeqIO's {spec.id!r}. Fix: "
            "choose another way to score."
        )
    return tuple(rendering.render_content_free(spec, source))
