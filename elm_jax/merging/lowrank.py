"""Low rank: a change of a kernel written as two factors, as LoRA stores it."""

import math

import numpy as np
from jaxtyping import Float

SMALL = 512  # a matrix with fewer rows or columns is decomposed whole, which is quick then
OVERSAMPLED, ROUNDS = 16, 6

Matrix = Float[np.ndarray, "I O"]


def factor(change: Matrix, rank: int) -> tuple[Float[np.ndarray, "I R"], Float[np.ndarray, "R O"]]:
    """Returns the factors whose product is nearest to a matrix; each has the roots of the singular values.

    For a large matrix and a small rank only the leading singular values are computed, by subspace iteration
    (Halko et al. 2011, algorithm 4.4) from a fixed start. This is exact for a matrix whose rank is at most
    `rank`, and near the best otherwise.

    Args:
        change: The matrix [I, O].
        rank: R, at most I and O.
    """
    inputs, outputs = change.shape
    least = min(inputs, outputs)
    if least <= SMALL or rank + OVERSAMPLED > least // 2:
        left, sizes, right = np.linalg.svd(change, full_matrices=False)
    else:
        space = np.random.default_rng(0).normal(size=(outputs, rank + OVERSAMPLED)).astype(np.float32)
        for _ in range(ROUNDS):
            basis = np.linalg.qr(change @ space)[0]
            space = np.linalg.qr(change.T @ basis)[0]
        basis = np.linalg.qr(change @ space)[0]
        inner, sizes, right = np.linalg.svd(basis.T @ change, full_matrices=False)
        left = basis @ inner
    roots = np.sqrt(sizes[:rank])
    return left[:, :rank] * roots[None], roots[:, None] * right[:rank]


def squared_error(change: Matrix, first: Float[np.ndarray, "I R"], second: Float[np.ndarray, "R O"]) -> float:
    """Returns the squared Frobenius norm of the difference of the matrix and the product of the factors."""
    return math.fsum(np.square(change - first @ second, dtype=np.float64).sum(axis=1))
