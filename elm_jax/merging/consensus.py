"""Consensus: the sum of the changes, where it serves several experts (Wang et al., arXiv 2405.07813).

An expert's TALL mask has the values for which the sum of all changes τ is near its own: `|ΔW| > λ |τ - ΔW|`,
with `mask_scale` as λ. Kept are the values of τ that are in at least `threshold` masks: 2 drops what serves
one expert alone and what serves none. The result is multiplied by `scale`.

The authors search the masks' λ from 0.2 to 0.6 and `scale` by validation. Here they are 0.4 and 1 / N, as in
`task_arithmetic`. If fewer experts are merged than the threshold, all of them have to agree.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from elm_jax.merging.changes import OPTIONS, SUM_SCALE, scale_shared_sum
from elm_jax.merging.method import MergeOption
from elm_jax.merging.parameter_groups import MergeInputs, Tensor, scale_to_unit_mean, weighted_sum
from elm_jax.merging.registry import register_merge


def tall_mask(change: np.ndarray, total: np.ndarray, mask_scale: float) -> Bool[np.ndarray, "..."]:
    """Returns where an expert's change is larger than λ times what the sum of all adds to it."""
    return np.abs(change) > np.float32(mask_scale) * np.abs(total - change)


def consensus_mask(
    changes: Sequence[np.ndarray], total: np.ndarray, mask_scale: float, threshold: int
) -> Bool[np.ndarray, "..."]:
    """Returns which values are in at least `threshold` of the experts' masks."""
    votes = np.zeros(total.shape, np.int32)
    for change in changes:
        votes += tall_mask(change, total, mask_scale)
    return votes >= threshold


@register_merge(
    "consensus",
    options={
        **OPTIONS,
        "threshold": MergeOption(
            int,
            2,
            "of how many experts' masks a value has to be",
            "a whole number of at least 0",
            lambda value: value >= 0,
        ),
        "mask_scale": MergeOption(
            float,
            0.4,
            "λ of the masks: the larger, the fewer values they have",
            "a number of at least 0",
            lambda value: value >= 0,
        ),
        "scale": SUM_SCALE,
    },
    shared_factor=scale_shared_sum,
)
def _merge_consensus(
    changes: Sequence[np.ndarray],
    inputs: MergeInputs,
    *,
    threshold: int,
    mask_scale: float,
    scale: float | None,
) -> Tensor:
    """The sum of the changes, where it serves several experts."""
    total = weighted_sum(changes, scale_to_unit_mean(inputs.weights))
    kept = consensus_mask(changes, total, mask_scale, min(threshold, len(changes)))
    return np.where(kept, total, 0) * np.float32(1 / len(changes) if scale is None else scale)
