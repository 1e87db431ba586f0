"""Fisher: the mean in which each value counts by how much it matters to its expert (Matena & Raffel 2021).

arXiv 2111.09832, equation 4: `Σ w F ΔW / Σ w F`, value by value, F the diagonal of the Fisher information,
estimated by the mean squared gradient of the log-likelihood. It is wanted for every part, in the shape of
its change; of LoRA that is the gradient by the kernel itself. `statistics` tells how it is got. The base
cancels. A value that matters to no expert is averaged.
"""

from collections.abc import Sequence

import numpy as np

from elm_jax.merging import changes as changed
from elm_jax.merging.method import Method
from elm_jax.merging.parts import Part, Piece, Tensor, mean
from elm_jax.statistics.moments import require_squares


def fisher(
    changes: Sequence[np.ndarray], weights: Sequence[float], importance: Sequence[np.ndarray]
) -> Tensor:
    """Returns the mean of the changes, each value weighted by its importance to each expert."""
    everything = mean(importance, weights)
    matters = everything > 0
    total = np.zeros_like(everything)
    for change, weight, own in zip(changes, weights, importance, strict=True):
        # Divided before it is multiplied: squared gradients are so small that products would vanish.
        share = np.full_like(everything, weight)
        np.divide(np.asarray(own, np.float32) * np.float32(weight), everything, out=share, where=matters)
        total += share * change
    return total


def _combine(changes: Sequence[np.ndarray], piece: Piece) -> Tensor:
    importance = piece.statistics or ()
    for owner, values in zip(piece.owners, importance, strict=True):
        require_squares(owner, piece.part.path, values)
    return fisher(changes, piece.weights, importance)


def _reads(part: Part, shape: tuple[int, ...]) -> tuple[int, ...]:
    del part
    return shape


METHOD = Method(
    says="the mean in which each value counts by its diagonal Fisher information",
    on="changes",
    combine=_combine,
    options=changed.OPTIONS,
    refusal=changed.refusal,
    reads=_reads,
    notes=changed.NOTES,
)
