"""Metrics for SeqIO's Evaluator: of the scores of choices, and of generated answers.

They are percentages and have the signatures of T5's functions of the same purpose. Metrics of generated
answers are those of `reporting.text_metrics`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.reporting.text_metrics import bleu, exact_match, rouge, squad

Metric = Callable[[Sequence[str], Sequence[str]], dict[str, float]]


def rank_postprocess(output: Any, example: Mapping[str, Any] | None = None, is_target: bool = False) -> Any:
    """Returns what `rank_accuracy` needs of a target: (row, choice), whether correct, weight and tokens."""
    if not is_target or example is None:
        return output
    return (
        tuple(np.asarray(example["idx"]).tolist()),
        bool(example["is_correct"]),
        float(example["weight"]),
        int(np.count_nonzero(example["targets"])),
    )


def rank_accuracy(targets: Sequence[Any], scores: Any, *, per_token: bool = False) -> dict[str, float]:
    """Returns the share of rows, in percent, whose best-scored choice is correct: rank classification.

    Rows may have different numbers of choices. A tie goes to the first choice, and a row counts by its first
    choice's weight.

    Args:
        targets: Results of `rank_postprocess`, one per choice, in any order.
        scores: Log-likelihoods of the choices, or a tuple whose first entry they are.
        per_token: Whether scores are divided by the number of the choice's tokens.

    Raises:
        UserError: If the numbers of targets and of scores differ.
    """
    if isinstance(scores, tuple):
        scores = scores[0]
    if len(targets) != len(scores):
        raise UserError(
            f"Expected a score of each of {len(targets)} choices, got {len(scores)}. Fix: score every target "
            "once."
        )
    choices_by_row: dict[int, list[tuple[int, float, bool, float]]] = {}
    for ((row, choice), correct, weight, tokens), score in zip(targets, scores, strict=True):
        value = float(score) / max(tokens, 1) if per_token else float(score)
        choices_by_row.setdefault(row, []).append((choice, value, correct, weight))
    right = total = 0.0
    for choices in choices_by_row.values():
        choices.sort(key=lambda entry: entry[0])
        best = max(choices, key=lambda entry: entry[1])  # of equal scores the first
        right += choices[0][3] * best[2]
        total += choices[0][3]
    return {"accuracy": 100 * right / total if total else 0.0}


METRICS: Mapping[str, Metric] = {
    "accuracy": exact_match,
    "exact_match": exact_match,
    "rouge_1": rouge,
    "rouge_2": rouge,
    "rouge_l": rouge,
    "bleu": bleu,
    "squad_em": squad,
    "squad_f1": squad,
    "bert_score": rouge,  # BERTScore needs another network, which SeqIO's users have to provide
}
"""The catalogue's name of a metric -> the function that computes it of generated answers."""


def get_metric(metric: str, task: str) -> Metric:
    """Returns the function that computes a task's metric of generated answers.

    Raises:
        UserError: If there is no such metric; the message names the task.
    """
    where = f"elm_jax.tasks.seqio_metrics, for {task!r}"
    return METRICS[names.resolve(metric, METRICS, kind="metric", where=where)]
