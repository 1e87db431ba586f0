"""Model stock: the mean change, shorter the wider apart the experts point (Jang et al., 2403.19522).

`t mean ΔW` with `t = N c / (1 + (N - 1) c)`, c the mean over pairs of the cosine of their changes. With
`by=layer` there is one c for each layer's tensor, with `by=filter` one for each of its rows, an output unit.
The authors have released no code; this is `mergekit`'s form, whose mean over pairs is its own choice for N >
2. As there t is not clipped: changes that point apart give a negative t. Weights, which neither has, count in
the mean.

A change of 0 has a cosine of 0 with all others. Where 1 + (N - 1) c is 0, changes of one length would cancel
out, and t is 0.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from elm_jax.merging.changes import OPTIONS
from elm_jax.merging.method import MergeOption
from elm_jax.merging.parameter_groups import MergeInputs, Tensor, to_output_rows, weighted_sum
from elm_jax.merging.registry import register_merge

ZERO_COSINE_SUM = 1e-12  # of a sum of cosines that is 0 but for rounding


def interpolation_share(changes: Sequence[Float[np.ndarray, "*rows N"]]) -> Float[np.ndarray, "*rows 1"]:
    """Returns t for each row of the changes."""
    total, experts = np.zeros((*changes[0].shape[:-1], 1)), len(changes)
    directions = np.zeros(changes[0].shape)
    for change in changes:
        size = np.sqrt(np.square(change, dtype=np.float64).sum(axis=-1, keepdims=True))
        directions += np.divide(change, size, out=np.zeros(change.shape), where=size > 0)
        total += size > 0
    if experts == 1:
        return np.ones_like(total)
    # The square of a sum of directions is theirs, which are 1 each, and twice the cosine of every pair.
    pairs = np.square(directions).sum(axis=-1, keepdims=True) - total
    cosine = pairs / (experts * (experts - 1))
    divisor = 1 + (experts - 1) * cosine
    return np.divide(experts * cosine, divisor, out=np.zeros_like(cosine), where=divisor > ZERO_COSINE_SUM)


@register_merge(
    "model_stock",
    options={
        **OPTIONS,
        "by": MergeOption(
            str,
            "layer",
            "what has an angle of its own: a layer's tensor, or each filter, its rows",
            "'layer' or 'filter'",
            lambda value: value in ("layer", "filter"),
        ),
    },
)
def _merge_model_stock(changes: Sequence[np.ndarray], inputs: MergeInputs, *, by: str) -> Tensor:
    """The mean change, the shorter the wider apart the experts point."""
    rows = (
        change.reshape(1, -1) if by == "layer" else to_output_rows(inputs.group, change) for change in changes
    )
    share = interpolation_share(list(rows)).astype(np.float32)
    mean = weighted_sum(changes, inputs.weights)
    return (
        share.item() * mean
        if by == "layer"
        else to_output_rows(inputs.group, share * to_output_rows(inputs.group, mean))
    )
