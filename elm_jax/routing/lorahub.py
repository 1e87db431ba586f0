"""LoraHub: weights of a few experts that fit a handful of labelled examples, found without gradients.

Huang et al. 2023, "LoraHub: Efficient Cross-Task Generalization via Dynamic LoRA Composition", arXiv
2307.13269: candidates are drawn at random, and a black-box search over their weights within [-1.5, 1.5]
minimises the loss on the examples plus a penalty, in 40 trials. Loss and penalty are those of the released
code (sail-sg/lorahub): the mean loss of a batch, which holds all examples, is divided by their number once
more, and 0.05 times the mean of absolute weights is added. It is few-shot: tables mark its scores.
"""

from collections.abc import Callable, Collection, Mapping

import numpy as np
from jaxtyping import Float

from elm_jax.errors import UserError
from elm_jax.records import Selection
from elm_jax.routing.inputs import KeyIndex, Queries, find_allowed_experts
from elm_jax.routing.registry import register_router

WEIGHT_BOUND = 1.5


def penalize_weights(
    loss: float, weights: Float[np.ndarray, " W"], *, shots: int, penalty: float = 0.05
) -> float:
    """Returns what the search minimises: loss / shots + penalty · mean |w|, `loss` the mean over tokens.

    >>> penalize_weights(2.0, np.array([1.0, -3.0]), shots=5)
    0.5
    """
    return loss / shots + penalty * float(np.abs(weights).mean())


@register_router("lorahub", reads=("loss",), few_shot=True)
def lorahub(
    queries: Queries,
    index: KeyIndex,
    *,
    loss: Callable[[Mapping[str, float]], float],
    shots: int = 5,
    candidates: int = 20,
    trials: int = 40,
    penalty: float = 0.05,
    seed: int = 0,
    exclude: Collection[str] = (),
) -> Selection:
    """Weights of a few experts that fit labelled examples, found without gradients.

    The first trial is all zeros, the base itself, so the result is never worse than that. The authors search
    with nevergrad; here it is COBYLA (Powell 1994), from zeros.

    Args:
        queries: Only the task's name is read.
        index: The experts.
        loss: Expert id -> weight, to the mean loss of the merged expert on the labelled examples.
        shots: How many examples these are.
        candidates: How many experts are drawn.
        trials: How many weights are tried.
        penalty: By what the mean of absolute weights is multiplied; see `penalize_weights`.
        seed: Of what is drawn.
        exclude: Datasets; experts that were trained on one of them are not drawn.

    Returns:
        The best weights that were tried; they may be negative and need not sum to 1.

    Raises:
        UserError: If the loss is not finite, or an option is not valid.
    """
    from scipy.optimize import minimize

    allowed = np.flatnonzero(find_allowed_experts(index, exclude))
    count = min(candidates, len(allowed))
    if count < 1 or trials < count + 2:  # the search looks once along every weight before it moves
        raise UserError(
            f"Expected at least one candidate, and two trials more than candidates, got {candidates} "
            f"candidates and {trials} trials."
        )
    drawn = np.sort(np.random.default_rng(seed).permutation(allowed)[:count])
    names = [index.experts[expert] for expert in drawn]
    tried: list[tuple[float, dict[str, float]]] = []

    def cost(weights: Float[np.ndarray, " W"]) -> float:
        weights = np.clip(
            weights, -WEIGHT_BOUND, WEIGHT_BOUND
        )  # COBYLA tries what is a little out of bounds too
        candidate = {name: float(weight) for name, weight in zip(names, weights, strict=True)}
        measured = float(loss(candidate))
        if not np.isfinite(measured):
            raise UserError(f"Expected a finite loss, got {measured} for the weights {candidate}.")
        tried.append((penalize_weights(measured, weights, shots=shots, penalty=penalty), candidate))
        return tried[-1][0]

    options = {"rhobeg": 0.5, "maxiter": trials, "tol": 1e-4}
    bounds = [(-WEIGHT_BOUND, WEIGHT_BOUND)] * count
    minimize(cost, np.zeros(count), method="COBYLA", bounds=bounds, options=options)
    best = min(tried, key=lambda trial: trial[0])[1]
    return Selection(task=queries.task, router="lorahub", weights=best, votes={}, queries=())
