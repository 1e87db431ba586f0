"""Fisher: the mean in which each value counts by how much it matters to its expert (Matena & Raffel 2021).

arXiv 2111.09832, equation 4: `Σ w F ΔW / Σ w F`, value by value, F the diagonal of the Fisher information,
estimated by the mean squared gradient of the log-likelihood. It is needed for every parameter group, in the
shape of its change; for LoRA that is the gradient by the kernel itself. `statistics.estimators` computes it.
The base cancels out. A value that matters to no expert is averaged.
"""

from collections.abc import Sequence

import numpy as np

from elm_jax.merging.changes import OPTIONS
from elm_jax.merging.parameter_groups import MergeInputs, ParameterGroup, Tensor, weighted_sum
from elm_jax.merging.registry import register_merge
from elm_jax.statistics.moments import require_squares


def fisher(
    changes: Sequence[np.ndarray], weights: Sequence[float], importance: Sequence[np.ndarray]
) -> Tensor:
    """Returns the mean of the changes, each value weighted by its importance to each expert."""
    summed = weighted_sum(importance, weights)
    matters = summed > 0
    total = np.zeros_like(summed)
    for change, weight, own in zip(changes, weights, importance, strict=True):
        # Divided before it is multiplied: squared gradients are so small that products would vanish.
        share = np.full_like(summed, weight)
        np.divide(np.asarray(own, np.float32) * np.float32(weight), summed, out=share, where=matters)
        total += share * change
    return total


def _statistics_shape(group: ParameterGroup, shape: tuple[int, ...]) -> tuple[int, ...]:
    del group
    return shape


@register_merge("fisher", options=OPTIONS, needs_base=False, statistics_shape=_statistics_shape)
def _merge_fisher(changes: Sequence[np.ndarray], inputs: MergeInputs) -> Tensor:
    """The mean in which each value counts by its diagonal Fisher information."""
    importance = inputs.statistics or ()
    for expert_id, values in zip(inputs.expert_ids, importance, strict=True):
        require_squares(expert_id, inputs.group.path, values)
    return fisher(changes, inputs.weights, importance)
