"""LoraHub: weights of a few experts that fit a handful of labelled examples, found without gradients.

Huang et al. 2023, "LoraHub: Efficient Cross-Task Generalization via Dynamic LoRA Composition", arXiv
2307.13269: candidates are drawn at random, and a black-box search over their weights within [-1.5, 1.5]
minimises the loss on the examples plus 0.05 times the mean of absolute weights (so the authors' released
code), in 40 trials. It is few-shot: its scores stand apart from the zero-shot ones in every table.
"""

from collections.abc import Callable, Collection, Mapping

import numpy as np
from jaxtyping import Float

from elm_jax.errors import UserError
from elm_jax.records import Selection
from elm_jax.routing import evidence
from elm_jax.routing.evidence import Index, Queries

BOUND = 1.5


def lorahub(
    queries: Queries,
    index: Index,
    *,
    loss: Callable[[Mapping[str, float]], float],
    candidates: int = 20,
    trials: int = 40,
    penalty: float = 0.05,
    seed: int = 0,
    exclude: Collection[str] = (),
) -> Selection:
    """Returns the best weights tried; they may be negative and need not sum to 1.

    `loss` takes expert id -> weight and returns the mean loss on the labelled examples of the merged expert;
    how experts are merged is its affair. The first trial is all zeros, the base itself, so the outcome is
    never worse than that. The authors search with nevergrad; here it is COBYLA (Powell 1994), from zeros.

    Raises a UserError if the loss is no number, or an option makes no sense.
    """
    from scipy.optimize import minimize

    allowed = np.flatnonzero(evidence.candidates(index, exclude))
    count = min(candidates, len(allowed))
    if count < 1 or trials < count + 2:  # the search looks once along every weight before it moves
        raise UserError(
            f"At least one candidate and two trials more than candidates are wanted, but {candidates} "
            f"candidates and {trials} trials came."
        )
    drawn = np.sort(np.random.default_rng(seed).permutation(allowed)[:count])
    names = [index.experts[expert] for expert in drawn]
    tried: list[tuple[float, dict[str, float]]] = []

    def cost(weights: Float[np.ndarray, " W"]) -> float:
        weights = np.clip(weights, -BOUND, BOUND)  # COBYLA tries what is a little out of bounds too
        given = {name: float(weight) for name, weight in zip(names, weights, strict=True)}
        measured = float(loss(given))
        if not np.isfinite(measured):
            raise UserError(
                f"The loss of weights should be a finite number, but {measured} came for {given}."
            )
        tried.append((measured + penalty * float(np.abs(weights).mean()), given))
        return tried[-1][0]

    options = {"rhobeg": 0.5, "maxiter": trials, "tol": 1e-4}
    bounds = [(-BOUND, BOUND)] * count
    minimize(cost, np.zeros(count), method="COBYLA", bounds=bounds, options=options)
    best = min(tried, key=lambda trial: trial[0])[1]
    return Selection(task=queries.task, router="lorahub", weights=best, votes={}, queries=())
