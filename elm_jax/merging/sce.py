"""SCE: select, calculate, erase, the fusion of FuseChat (Wan et al., arXiv 2408.07990).

Of each tensor the share `select` of values that differ most between the experts is selected, by their
variance; each expert's coefficient is the sum of its squared ΔW there, divided by that of all experts; what
has not the sign of the sum of all is erased, and the rest averaged by the coefficients. Values that all
experts have in common are not counted for the share, and a sum of 0 elects the positive sign.

As in the authors' code the selection is for the coefficients alone (`merge=all`); with `merge=selected`, as
in `mergekit`, what was not selected stays the base's. Weights, which neither has, multiply the coefficients.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from elm_jax.merging.changes import OPTIONS
from elm_jax.merging.method import MergeOption
from elm_jax.merging.parameter_groups import MergeInputs, Tensor
from elm_jax.merging.registry import register_merge
from elm_jax.merging.ties import SHARE, elect_signs


def select_high_variance(changes: Sequence[np.ndarray], select: float) -> Bool[np.ndarray, "..."]:
    """Returns which values are among the share of highest variance over the experts."""
    variance = np.var(np.stack([np.asarray(change, np.float64) for change in changes]), axis=0)
    count = int(select * np.count_nonzero(variance))
    chosen = (-variance).argsort(axis=None, kind="stable")[:count]
    selected = np.zeros(variance.size, bool)
    selected[chosen] = True
    return selected.reshape(variance.shape)


def sce(changes: Sequence[np.ndarray], weights: Sequence[float], select: float, merge: str) -> Tensor:
    """Returns the merged change of a tensor."""
    selected = select_high_variance(changes, select)
    squares = [float(np.square(change, dtype=np.float64)[selected].sum()) for change in changes]
    coefficients = [weight * square for weight, square in zip(weights, squares, strict=True)]
    # Where nothing was selected, as of experts that are one and the same, they count by weight alone.
    coefficients = coefficients if sum(coefficients) > 0 else list(weights)
    if merge == "selected":
        changes = [np.where(selected, change, np.float32(0)) for change in changes]
    return elect_signs(changes, coefficients, votes=[1.0] * len(changes))


@register_merge(
    "sce",
    options={
        **OPTIONS,
        "select": MergeOption(float, 1.0, "share of values selected", SHARE, lambda value: 0 < value <= 1),
        "merge": MergeOption(
            str,
            "all",
            "what is merged: all values, or the selected ones alone",
            "'all' or 'selected'",
            lambda value: value in ("all", "selected"),
        ),
    },
)
def _merge_sce(changes: Sequence[np.ndarray], inputs: MergeInputs, *, select: float, merge: str) -> Tensor:
    """The mean of the changes that have the sum's sign, by how much each expert changes what differs."""
    return sce(changes, inputs.weights, select, merge)
