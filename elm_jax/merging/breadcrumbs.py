"""Breadcrumbs: changes without their largest and small values (Davari & Belilovsky, arXiv 2312.06795).

In every row of ΔW, one output unit, the ⌊n remove⌋ largest magnitudes of n are dropped and the next ⌊n keep⌋
kept; the merged change is λ times the weighted sum of what is left. With `of=tensor`, as in `mergekit`, the
shares are of the whole tensor; `mergekit` itself keeps nothing where not one value is to be removed.

The authors choose λ and the shares by validation, and their code has no defaults. Here λ is 1 / N by default,
as in `task_arithmetic`.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from elm_jax.merging.changes import OPTIONS, SUM_SCALE, scale_shared_sum
from elm_jax.merging.method import MergeOption
from elm_jax.merging.parameter_groups import MergeInputs, Tensor, to_output_rows, weighted_sum
from elm_jax.merging.registry import register_merge

SHARE = "a share from 0 to 1"


def keep_middle(
    change: Float[np.ndarray, "*rows N"], keep: float, remove: float
) -> Float[np.ndarray, "*rows N"]:
    """Returns each row without its largest magnitudes and with as many of the next as `keep` says.

    Of equal magnitudes the first ones count as larger.
    """
    count = change.shape[-1]
    removed = int(count * remove)
    largest_first = (-np.abs(change)).argsort(axis=-1, kind="stable")
    chosen = largest_first[..., removed : removed + int(count * keep)]
    kept = np.zeros_like(change)
    np.put_along_axis(kept, chosen, np.take_along_axis(change, chosen, axis=-1), axis=-1)
    return kept


@register_merge(
    "breadcrumbs",
    options={
        **OPTIONS,
        "keep": MergeOption(float, 0.15, "share of values kept", SHARE, lambda value: 0 <= value <= 1),
        "remove": MergeOption(
            float, 0.01, "share of the largest values that is dropped", SHARE, lambda value: 0 <= value <= 1
        ),
        "of": MergeOption(
            str,
            "row",
            "of what the shares are: each output unit's row, or the whole tensor",
            "'row' or 'tensor'",
            lambda value: value in ("row", "tensor"),
        ),
        "scale": SUM_SCALE,
    },
    shared_factor=scale_shared_sum,
)
def _merge_breadcrumbs(
    changes: Sequence[np.ndarray],
    inputs: MergeInputs,
    *,
    keep: float,
    remove: float,
    of: str,
    scale: float | None,
) -> Tensor:
    """The middle values of each change, without the largest and the small ones, summed."""

    def sift(change: np.ndarray) -> np.ndarray:
        if of == "tensor":
            return keep_middle(change.ravel(), keep, remove).reshape(change.shape)
        return to_output_rows(inputs.group, keep_middle(to_output_rows(inputs.group, change), keep, remove))

    factor = 1.0 if scale is None else scale * len(changes)
    return np.float32(factor) * weighted_sum(map(sift, changes), inputs.weights)
