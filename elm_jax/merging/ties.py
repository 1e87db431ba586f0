"""TIES: the largest changes of each expert, of the sign that most of them have (Yadav et al., 2306.01708).

Section 3: of every tensor of ΔW only the share `density` of the largest magnitudes is kept (trim), each
value's sign is that of the experts' weighted sum (elect), and the mean is taken over those kept values alone
that have it (merge). The result is multiplied by λ, `scale`. The paper trims over the whole network at once;
here, as in `mergekit` and `peft`, each layer's tensor is trimmed by itself, so that none is emptied.

Trimming is there to lessen interference between experts. Where all of them are one and the same there is
none, and that expert comes back whole.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from elm_jax.merging import changes as changed
from elm_jax.merging.method import Method, Option
from elm_jax.merging.parts import Piece, Tensor

SHARE = "A share above 0 and at most 1"


def ties(changes: Iterable[np.ndarray], weights: Sequence[float], density: float) -> Tensor:
    """Returns the merged change of trimmed ones; λ is not in it."""
    return elect((trim(change, density) for change in changes), weights)


def trim(change: Tensor, density: float) -> Tensor:
    """Returns the change with all but the share of largest magnitudes zero, at least one value is kept.

    Values as large as the least that is kept are kept too, so that no value's place decides.
    """
    kept = max(1, int(density * change.size))
    if kept == change.size:
        return change
    sizes = np.abs(change)
    least = np.partition(sizes, change.size - kept, axis=None)[change.size - kept]
    return np.where(sizes >= least, change, np.float32(0))


def elect(changes: Iterable[np.ndarray], weights: Sequence[float]) -> Tensor:
    """Returns, value by value, the weighted mean of the changes that have the sign of the weighted sum.

    Zeros have no sign and take no part; a sum of zero elects the positive sign, as in `peft`.
    """
    sums: list[np.ndarray] = []  # of positive changes, of negative ones, and the weights of both
    for change, weight in zip(changes, np.asarray(weights, np.float32), strict=True):
        signs = [change > 0, change < 0]
        terms = [np.where(sign, change * weight, np.float32(0)) for sign in signs]
        terms += [sign * weight for sign in signs]
        sums = [total + term for total, term in zip(sums, terms, strict=True)] if sums else terms
    above, below, votes_above, votes_below = sums
    positive = above + below >= 0
    total, votes = np.where(positive, above, below), np.where(positive, votes_above, votes_below)
    return np.divide(total, votes, out=np.zeros_like(total), where=votes > 0)


def _combine(changes: Sequence[np.ndarray], piece: Piece, *, density: float, scale: float) -> Tensor:
    return np.float32(scale) * ties(changes, piece.weights, density)


METHOD = Method(
    says="the largest changes of each expert, of the sign that most of them have",
    on="changes",
    combine=_combine,
    options={
        **changed.OPTIONS,
        "density": Option(float, 0.2, "share of values kept, the paper's 20 %", SHARE, lambda v: 0 < v <= 1),
        "scale": changed.SCALE,
    },
    factor=lambda weights, options: options["scale"],
    needs_base=True,
    refusal=changed.refusal,
    notes=changed.NOTES,
)
