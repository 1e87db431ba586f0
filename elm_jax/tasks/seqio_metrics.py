"""SeqIO's metrics: rank classification by the scores of choices, and exact match, for its Evaluator.

They are percentages, as T5's are, and take and give what T5's functions of the same purpose do.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from elm_jax.errors import UserError


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


def exact_match(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Returns the share of predictions, in percent, that are their target but for white space around them."""
    same = [target.strip() == told.strip() for target, told in zip(targets, predictions, strict=True)]
    return {"exact_match": 100 * float(np.mean(same)) if same else 0.0}
