"""TIES: the largest changes of each expert, of the sign that most of them have (Yadav et al., 2306.01708).

Section 3: of every tensor of ΔW only the share `density` of the largest magnitudes is kept (trim), each
value's sign is that of the experts' weighted sum (elect), and the mean is taken over the kept values that
have it (merge). The result is multiplied by λ, `scale`. The paper trims over the whole network at once; here,
as in `mergekit` and `peft`, each layer's tensor is trimmed by itself, so that none becomes all zeros.

Trimming reduces interference between experts. If all of them are the same expert there is none, and that
expert comes back whole.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from elm_jax.merging.changes import OPTIONS, SCALE
from elm_jax.merging.method import MergeOption
from elm_jax.merging.parameter_groups import MergeInputs, Tensor
from elm_jax.merging.registry import register_merge

SHARE = "a share above 0 and at most 1"


def ties(changes: Iterable[np.ndarray], weights: Sequence[float], density: float) -> Tensor:
    """Returns the merged change of trimmed ones, not multiplied by λ."""
    return elect_signs((trim(change, density) for change in changes), weights)


def trim(change: Tensor, density: float) -> Tensor:
    """Returns the change with zeros for all but the share of largest magnitudes; one value is always kept.

    Values as large as the smallest kept one are kept too, so that positions do not decide.
    """
    count = max(1, int(density * change.size))
    if count == change.size:
        return change
    magnitudes = np.abs(change)
    smallest = np.partition(magnitudes, change.size - count, axis=None)[change.size - count]
    return np.where(magnitudes >= smallest, change, np.float32(0))


def elect_signs(changes: Iterable[np.ndarray], weights: Sequence[float]) -> Tensor:
    """Returns, value by value, the weighted mean of the changes that have the sign of the weighted sum.

    Zeros have no sign and take no part; a sum of zero elects the positive sign, as in `peft`.
    """
    sums: list[np.ndarray] = []  # of positive changes, of negative ones, and the weights of both
    for change, weight in zip(changes, np.asarray(weights, np.float32), strict=True):
        signs = [change > 0, change < 0]
        terms = [np.where(sign, change * weight, np.float32(0)) for sign in signs]
        terms += [sign * weight for sign in signs]
        sums = [total + term for total, term in zip(sums, terms, strict=True)] if sums else terms
    positive_sum, negative_sum, positive_weight, negative_weight = sums
    positive = positive_sum + negative_sum >= 0
    total = np.where(positive, positive_sum, negative_sum)
    votes = np.where(positive, positive_weight, negative_weight)
    return np.divide(total, votes, out=np.zeros_like(total), where=votes > 0)


@register_merge(
    "ties",
    options={
        **OPTIONS,
        "density": MergeOption(
            float, 0.2, "share of values kept, the paper's 20 %", SHARE, lambda value: 0 < value <= 1
        ),
        "scale": SCALE,
    },
    shared_factor=lambda weights, options: options["scale"],
)
def _merge_ties(
    changes: Sequence[np.ndarray], inputs: MergeInputs, *, density: float, scale: float
) -> Tensor:
    """The largest changes of each expert, of the sign that most of them have."""
    return np.float32(scale) * ties(changes, inputs.weights, density)
