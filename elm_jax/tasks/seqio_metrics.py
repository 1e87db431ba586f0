"""SeqIO's metrics: of the scores of choices, and of the answers that a model writes, for its Evaluator.

They are percentages, as T5's are, and take and give what T5's functions of the same purpose do. Those of
written answers are `reporting.text_metrics`'s.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.reporting.text_metrics import bleu, exact_match, rouge, squad

Metric = Callable[[Sequence[str], Sequence[str]], dict[str, float]]


def rank_postprocess(output: Any, example: Mapping[str, Any] | None = None, is_target: bool = False) -> Any:
    """Returns what `rank_accuracy` needs of a target: (row, choice), is it correct, its weight and tokens."""
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

    `targets` are what `rank_postprocess` gives, a choice each, in any order; rows may have different numbers
    of choices. A tie goes to the first choice. A row counts by its first choice's weight. `scores` are log
    likelihoods, and with `per_token` they are divided by the number of the choice's tokens.
    """
    if isinstance(scores, tuple):  # scores, and whatever else the model told
        scores = scores[0]
    if len(targets) != len(scores):
        raise UserError(f"A score is wanted for each of {len(targets)} choices, but {len(scores)} came.")
    of_row: dict[int, list[tuple[int, float, bool, float]]] = {}
    for ((row, choice), correct, weight, tokens), score in zip(targets, scores, strict=True):
        value = float(score) / max(tokens, 1) if per_token else float(score)
        of_row.setdefault(row, []).append((choice, value, correct, weight))
    right = total = 0.0
    for choices in of_row.values():
        choices.sort(key=lambda entry: entry[0])
        best = max(choices, key=lambda entry: entry[1])  # of equals the first
        right += choices[0][3] * best[2]
        total += choices[0][3]
    return {"accuracy": 100 * right / total if total else 0.0}


WRITTEN: Mapping[str, Metric] = {
    "accuracy": exact_match,
    "exact_match": exact_match,
    "rouge_1": rouge,
    "rouge_2": rouge,
    "rouge_l": rouge,
    "bleu": bleu,
    "squad_em": squad,
    "squad_f1": squad,
    "bert_score": rouge,  # BERTScore is computed by another network, which SeqIO's users have to bring
}
"""A task's metric, as the catalogue calls it -> what is computed of the answers that a model writes."""


def written(metric: str, task: str) -> Metric:
    """Returns what judges the written answers of a task whose metric the catalogue calls so.

    An unknown one raises `UserError`, which names the task.
    """
    where = f"elm_jax.tasks.seqio_metrics, which {task!r} asks for it"
    return WRITTEN[names.resolve(metric, WRITTEN, kind="metric", where=where)]
