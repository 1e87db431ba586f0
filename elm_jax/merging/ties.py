"""TIES: the largest changes of each expert, of the sign that most of them have (Yadav et al., 2306.01708).

Section 3: of ΔW only the share `density` of the largest magnitudes is kept (trim), each value's sign is that
of the experts' sum (elect), and the mean is taken over the kept values that have it (merge). The result is
multiplied by λ, `scale`.

As in the authors' code a share of the whole network is kept (`trim=network`), of d values ⌊d density⌋ + 1,
and the sum is that of the values as they are (`elect=unweighted`); where it is 0, the sign that most of the
network has is elected. `trim=tensor` does the same with each layer's tensor alone. `trim=peft`, as `peft` and
`mergekit` do, keeps ⌊d density⌋ values of each tensor, and a sum of 0 elects the positive sign. With
`elect=weighted` the sum is that of values times weights, as in `mergekit`. The authors have no weights; here
they always count in the mean.

Trimming reduces interference between experts. If all of them are the same expert there is none, and that
expert comes back whole.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import numpy as np

from elm_jax.merging.changes import OPTIONS, SCALE
from elm_jax.merging.magnitudes import find_thresholds
from elm_jax.merging.method import MergeOption
from elm_jax.merging.parameter_groups import (
    MergeInputs,
    Network,
    NetworkLayers,
    Tensor,
    network_of,
    weighted_sum,
)
from elm_jax.merging.registry import register_merge

SHARE = "a share above 0 and at most 1"
DENSITY = MergeOption(
    float, 0.2, "share of values kept, the paper's 20 %", SHARE, lambda value: 0 < value <= 1
)
Layers = Callable[[], Iterable[Sequence[np.ndarray]]]


def trim_tensor(change: Tensor, density: float) -> Tensor:
    """Returns the change with zeros for all but the share of largest magnitudes; one value is always kept.

    Values as large as the smallest kept one are kept too, so that positions do not decide.
    """
    count = max(1, int(density * change.size))
    if count == change.size:
        return change
    magnitudes = np.abs(change)
    smallest = np.partition(magnitudes, change.size - count, axis=None)[change.size - count]
    return keep_large(change, smallest)


def keep_large(change: Tensor, smallest: np.floating) -> Tensor:
    """Returns the change with zeros for all magnitudes below the smallest that is kept."""
    return np.where(np.abs(change) >= smallest, change, np.float32(0))


def elect_signs(
    changes: Iterable[np.ndarray],
    weights: Sequence[float],
    *,
    votes: Sequence[float] | None = None,
    default_sign: Callable[[], float] = lambda: 1.0,
) -> Tensor:
    """Returns, value by value, the weighted mean of the changes that have the elected sign.

    Zeros have no sign and take no part.

    Args:
        changes: One per expert.
        weights: One per expert, of the mean.
        votes: One per expert, by which changes are multiplied in the sum whose sign is elected; by default
            the weights.
        default_sign: Tells the sign that is elected where the sum is 0, positive or else negative; asked for
            only if there is such a sum of values that are not 0.
    """
    totals: list[np.ndarray] = []  # the sum that elects; of positive changes, of negative ones; their weights
    factors = zip(np.asarray(weights, np.float32), np.asarray(votes or weights, np.float32), strict=True)
    for change, (weight, vote) in zip(changes, factors, strict=True):
        signs = [change > 0, change < 0]
        terms = [change * vote, *(np.where(sign, change * weight, np.float32(0)) for sign in signs)]
        terms += [sign * weight for sign in signs]
        totals = [total + term for total, term in zip(totals, terms, strict=True)] if totals else terms
    elected, positive_sum, negative_sum, positive_weight, negative_weight = totals
    positive = elected > 0
    undecided = elected == 0
    if bool(np.any(undecided & (positive_weight > 0))) and default_sign() > 0:
        positive |= undecided
    total = np.where(positive, positive_sum, negative_sum)
    shares = np.where(positive, positive_weight, negative_weight)
    return np.divide(total, shares, out=np.zeros_like(total), where=shares > 0)


def trim_network(
    layers: Layers, weights: Sequence[float], density: float, votes: Sequence[float] | None = None
) -> Callable[[Sequence[np.ndarray]], Tensor]:
    """Returns `changes -> merged change` of a layer, trimmed over all layers.

    Args:
        layers: Starts a pass over all layers: one change per expert.
        weights: One per expert.
        density: The share of the network's values that is kept.
        votes: One per expert, as `elect_signs` takes them; 1 each by default.
    """
    thresholds = find_thresholds(layers, len(weights), density)
    votes = votes or [1.0] * len(weights)

    def keep(changes: Sequence[np.ndarray]) -> Iterable[np.ndarray]:
        return map(keep_large, changes, thresholds)

    @cache
    def count_signs() -> float:
        sums = (weighted_sum(keep(changes), votes) for changes in layers())
        return math.fsum(np.sign(total).sum(dtype=np.float64) for total in sums)

    return lambda changes: elect_signs(keep(changes), weights, votes=votes, default_sign=count_signs)


def _trim_network(
    layers: NetworkLayers,
    weights: tuple[float, ...],
    votes: tuple[float, ...],
    density: float,
) -> Callable[[Sequence[np.ndarray]], Tensor]:
    return trim_network(lambda: (changes for changes, _ in layers()), weights, density, votes)


@register_merge(
    "ties",
    options={
        **OPTIONS,
        "density": DENSITY,
        "trim": MergeOption(
            str,
            "network",
            "of what the share is kept: the whole network or each layer's tensor; peft: as that library does",
            "'network', 'tensor' or 'peft'",
            lambda value: value in ("network", "tensor", "peft"),
        ),
        "elect": MergeOption(
            str,
            "unweighted",
            "whether weights count in the election of signs: unweighted or weighted",
            "'unweighted' or 'weighted'",
            lambda value: value in ("unweighted", "weighted"),
        ),
        "scale": SCALE,
    },
    shared_factor=lambda weights, options: options["scale"],
)
def _merge_ties(
    changes: Sequence[np.ndarray], inputs: MergeInputs, *, density: float, trim: str, elect: str, scale: float
) -> Tensor:
    """The largest changes of each expert, of the sign that most of them have."""
    votes = (1.0,) * len(changes) if elect == "unweighted" else tuple(inputs.weights)
    if trim == "peft":
        kept = (trim_tensor(change, density) for change in changes)
        return np.float32(scale) * elect_signs(kept, inputs.weights, votes=votes)
    network = network_of(changes, inputs) if trim == "network" else Network(lambda: [(changes, inputs)])
    return np.float32(scale) * network.measure(_trim_network, tuple(inputs.weights), votes, density)(changes)
