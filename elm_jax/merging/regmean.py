"""RegMean: the kernel whose outputs are nearest to each expert's on its own inputs (Jin et al., 2212.09849).

Equation 2: `(Σ w G)⁻¹ Σ w G ΔW` for each linear layer, G = X'X / n the Gram matrix of its inputs, averaged
over the n tokens, which `statistics.estimators` computes. As in the paper, G's values off the diagonal are
multiplied by `alpha`, which guards against inputs that go together by chance: 0.1 as the authors' code has it
for T5; it has 0.9 for some others, and 1 leaves G as it is. The same least squares for a vector, which is a
diagonal kernel, weighs each value by the squares of what it multiplies. The base cancels out. Norm scales,
embeddings and position biases, which are no linear layers, are averaged, as in the paper.
"""

from collections.abc import Sequence

import numpy as np

from elm_jax.merging.changes import RANK
from elm_jax.merging.fisher import average_by_importance
from elm_jax.merging.method import MergeOption, Options
from elm_jax.merging.parameter_groups import MergeInputs, ParameterGroup, Tensor, weighted_sum
from elm_jax.merging.registry import register_merge
from elm_jax.statistics.moments import require_squares

RIDGE = 1e-9  # of the mean diagonal: next to nothing, but a direction that no input has must not divide by 0


def regmean(
    changes: Sequence[np.ndarray], weights: Sequence[float], grams: Sequence[np.ndarray], alpha: float
) -> Tensor:
    """Returns the merged change of a kernel.

    It is solved for what is added to the mean, so that the mean remains where no expert has seen any input.

    Args:
        changes: One change [I, O] per expert.
        weights: One per expert.
        grams: One Gram matrix [I, I] per expert.
        alpha: By what values off the diagonal of the Gram matrices are multiplied.
    """
    middle = weighted_sum(changes, weights)
    # The matrices are badly conditioned, so the one solve is in double precision.
    total, right = np.zeros(grams[0].shape), np.zeros(middle.shape)
    for change, weight, gram in zip(changes, weights, grams, strict=True):
        own = weight * np.asarray(gram, np.float64)
        own = alpha * own + (1 - alpha) * np.diag(np.diagonal(own))
        total += own
        right += own @ (change - middle)
    ridge = RIDGE * np.trace(total) / len(total)
    if ridge == 0:
        return middle
    correction = np.linalg.solve(total + ridge * np.eye(len(total)), right)
    return middle + correction.astype(np.float32)


def _statistics_shape(group: ParameterGroup, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    if group.form == "vector":
        return shape
    return (*shape[:-1], shape[-2]) if group.path.endswith("/kernel") else None


def _find_conflict(groups: Sequence[ParameterGroup], options: Options) -> str | None:
    """Says why experts cannot be merged so; None if they can."""
    del options
    if any(group.form == "adapter" for group in groups):
        return (
            "it works on linear layers of the base and on factors, but adapters are networks of their own, "
            "and norm scales, the only other parameters of these experts, would be averaged"
        )
    return None


@register_merge(
    "regmean",
    options={
        "rank": RANK,
        "alpha": MergeOption(
            float,
            0.1,
            "factor on the Gram matrices off their diagonals",
            "a number from 0 to 1",
            lambda value: 0 <= value <= 1,
        ),
    },
    needs_base=False,
    find_conflict=_find_conflict,
    statistics_shape=_statistics_shape,
)
def _merge_regmean(changes: Sequence[np.ndarray], inputs: MergeInputs, *, alpha: float) -> Tensor:
    """The kernel whose outputs are nearest to each expert's on its own inputs."""
    statistics = inputs.statistics
    if statistics is None:
        return weighted_sum(changes, inputs.weights)
    for expert_id, values in zip(inputs.expert_ids, statistics, strict=True):
        squares = np.diagonal(values) if values.ndim == 2 else values
        require_squares(expert_id, inputs.group.path, squares)
    if inputs.group.form == "vector":
        return average_by_importance(changes, inputs.weights, statistics)
    return regmean(changes, inputs.weights, statistics, alpha)
