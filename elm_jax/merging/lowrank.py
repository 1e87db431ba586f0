"""Low rank: changes of kernels as two factors, as LoRA stores them, and singular values without null space.

The vectors that a decomposition gives for singular values of 0 are arbitrary, so none of them is ever used
here: what is computed of a matrix of low rank depends on the matrix alone. Of LoRA, the factors are
decomposed, not their product: QR of each, and then a matrix of the rank's size. A whole matrix was rounded to
float32, so its singular values of 0 are as large as rounding errors.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

MAX_FULL_SVD_SIZE = 512  # a matrix with fewer rows or columns is decomposed whole, which is quick then
OVERSAMPLED, ROUNDS = 16, 6

Matrix = Float[np.ndarray, "I O"]


class Factors(NamedTuple):
    """A matrix as the product of two."""

    left: Float[np.ndarray, "I R"]
    right: Float[np.ndarray, "R O"]


class Spectrum(NamedTuple):
    """A matrix as `left * sizes @ right`, by its singular values above 0, largest first; in float64."""

    left: Float[np.ndarray, "I R"]
    sizes: Float[np.ndarray, " R"]
    right: Float[np.ndarray, "R O"]


def decompose(matrix: Matrix | Factors, norm: float | None = None) -> Spectrum:
    """Returns the singular values and vectors of a matrix, without those of its null space.

    Args:
        matrix: The matrix, or its factors.
        norm: The norm against which a singular value counts as 0; by default the matrix's own. A matrix that
            is what is left of another one takes that one's, as it may be rounding errors alone.
    """
    if isinstance(matrix, Factors):
        left, inner_left = np.linalg.qr(np.asarray(matrix.left, np.float64))
        right, inner_right = np.linalg.qr(np.asarray(matrix.right, np.float64).T)
        inner, longest, precision = inner_left @ inner_right.T, max(len(left), len(right)), np.float64
    else:
        left, right, inner = None, None, np.asarray(matrix, np.float64)
        longest, precision = max(inner.shape), np.float32
    if inner.size:
        u, sizes, v = np.linalg.svd(inner, full_matrices=False)
    else:
        u, sizes, v = np.zeros((len(inner), 0)), np.zeros(0), np.zeros((0, inner.shape[1]))
    largest = max(sizes, default=0.0) if norm is None else norm
    rank = int(np.count_nonzero(sizes > np.finfo(precision).eps * longest * largest))
    u, sizes, v = u[:, :rank], sizes[:rank], v[:rank]
    return Spectrum(u if left is None else left @ u, sizes, v if right is None else v @ right.T)


def orthogonalize(matrix: Matrix) -> Matrix:
    """Returns U Vᵀ of a matrix, the nearest of orthogonal rows or columns; 0 on its null space."""
    left, _, right = decompose(matrix)
    return left @ right


def add_matrices(matrices: Sequence[Matrix | Factors], weights: Sequence[float]) -> Matrix | Factors:
    """Returns the weighted sum in float64; that of factors is the factors side by side."""
    factors = [matrix for matrix in matrices if isinstance(matrix, Factors)]
    if factors:
        left = [
            np.asarray(each.left, np.float64) * weight for each, weight in zip(factors, weights, strict=True)
        ]
        return Factors(np.concatenate(left, axis=1), np.concatenate([each.right for each in factors]))
    total = np.zeros(np.shape(matrices[0]))
    for matrix, weight in zip(matrices, weights, strict=True):
        total += np.asarray(matrix, np.float64) * weight
    return total


def factor(change: Matrix, rank: int) -> Factors:
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
    if least <= MAX_FULL_SVD_SIZE or rank + OVERSAMPLED > least // 2:
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
    return Factors(left[:, :rank] * roots[None], roots[:, None] * right[:rank])


def squared_error(change: Matrix, first: Float[np.ndarray, "I R"], second: Float[np.ndarray, "R O"]) -> float:
    """Returns the squared Frobenius norm of the difference of the matrix and the product of the factors."""
    return math.fsum(np.square(change - first @ second, dtype=np.float64).sum(axis=1))
