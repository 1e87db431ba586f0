"""RegMean: the kernel whose outputs are nearest to each expert's on its own inputs (Jin et al., 2212.09849).

Equation 2: `(Σ w G)⁻¹ Σ w G ΔW` for each linear layer, G = X'X the Gram matrix of what goes into it
(`statistics` tells how it is got). As in the paper, G's values off the diagonal are multiplied by `alpha`,
which guards against inputs that go together by chance. The same least squares for a vector, which is a
diagonal kernel, weighs each value by the squares of what it multiplies. The base cancels. What is no linear
layer (norm scales, embeddings, position biases) is averaged, as in the paper.
"""

from collections.abc import Sequence

import numpy as np

from elm_jax.merging import changes as changed
from elm_jax.merging.fisher import fisher
from elm_jax.merging.method import Method, Option, Options
from elm_jax.merging.parts import Part, Piece, Tensor, mean
from elm_jax.statistics.moments import require_squares

RIDGE = 1e-9  # of the mean diagonal: next to nothing, but a direction that no input has must not divide by 0


def regmean(
    changes: Sequence[np.ndarray], weights: Sequence[float], grams: Sequence[np.ndarray], alpha: float
) -> Tensor:
    """Returns the merged change of a kernel [I, O] by Gram matrices [I, I].

    Solved for what is to be added to the mean, so that where no expert has seen any input the mean remains.
    """
    middle = mean(changes, weights)
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


def _combine(changes: Sequence[np.ndarray], piece: Piece, *, alpha: float) -> Tensor:
    known = piece.statistics
    if known is None:
        return mean(changes, piece.weights)
    for owner, values in zip(piece.owners, known, strict=True):
        require_squares(owner, piece.part.path, np.diagonal(values) if values.ndim == 2 else values)
    if piece.part.form == "vector":
        return fisher(changes, piece.weights, known)
    return regmean(changes, piece.weights, known, alpha)


def _reads(part: Part, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    if part.form == "vector":
        return shape
    return (*shape[:-1], shape[-2]) if part.path.endswith("/kernel") else None


def refusal(parts: Sequence[Part], options: Options) -> str | None:
    """Returns why experts cannot be merged so, None if they can."""
    del options
    if any(part.form == "adapter" for part in parts):
        return (
            "it works on linear layers of the base and on factors, adapters are networks of their own, and "
            "norm scales, which are all else that these experts own, it would average"
        )
    return None


METHOD = Method(
    says="the kernel whose outputs are nearest to each expert's on its own inputs",
    on="changes",
    combine=_combine,
    options={
        "rank": changed.RANK,
        "alpha": Option(
            float,
            0.9,
            "factor on the Gram matrices off their diagonals",
            "A number from 0 to 1",
            lambda value: 0 <= value <= 1,
        ),
    },
    refusal=refusal,
    reads=_reads,
    notes=changed.NOTES,
)
