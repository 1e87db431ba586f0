"""KnOTS: TIES in directions that all experts share (Stoica et al., arXiv 2410.19735).

All experts' ΔW of a kernel side by side along the inputs are U S [V₁ᵀ … V_Nᵀ]; TIES merges the Pₙ = S Vₙᵀ,
and the result is U times λ times what TIES gives. As in the authors' code TIES keeps a share of the whole
network, singular values up to 1e-5 are dropped, and λ, `scale`, is 0.6 in their settings; here it is 1. What
is no matrix, which they do not have, is averaged.

The signs of U are arbitrary, and where a sum of TIES is 0 they would decide. Here each column of U has the
sign that makes its largest entry positive, so that the result depends on the experts' changes alone.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from elm_jax.merging.changes import RANK, SCALE, as_matrices, find_no_matrix
from elm_jax.merging.lowrank import Factors, Matrix
from elm_jax.merging.parameter_groups import (
    MergeInputs,
    NetworkLayers,
    Tensor,
    is_matrix,
    network_of,
    weighted_sum,
)
from elm_jax.merging.registry import register_merge
from elm_jax.merging.ties import DENSITY, trim_network

MIN_SINGULAR_VALUE = 1e-5  # a singular value up to this is dropped, as in the authors' code


class AlignedChanges(NamedTuple):
    """Experts' changes of a kernel by what they share: `parts[n] @ shared` is the n-th expert's."""

    parts: list[np.ndarray]  # Pₙ, [I, R] each
    shared: np.ndarray  # U, [R, O]


def align_changes(matrices: Sequence[Matrix | Factors]) -> AlignedChanges:
    """Returns the changes by one decomposition of all of them side by side."""
    bases, rest = zip(*(_factorize(matrix) for matrix in matrices), strict=True)
    ends = np.cumsum([len(own) for own in rest])
    left, sizes, shared = np.linalg.svd(np.concatenate(rest), full_matrices=False)
    rank = int(np.count_nonzero(sizes > MIN_SINGULAR_VALUE))
    left, shared = left[:, :rank] * sizes[:rank], shared[:rank]
    largest = np.abs(shared).argmax(axis=1, keepdims=True)
    signs = np.sign(np.take_along_axis(shared, largest, axis=1))
    own_left = np.split(left * signs.T, ends[:-1])
    parts = [basis @ own for basis, own in zip(bases, own_left, strict=True)]
    # An expert that changes nothing there has rounding errors for values, and these would take part.
    error = np.finfo(np.float64).eps * ends[-1] * max(sizes, default=0.0)
    parts = [np.where(np.abs(part) > error, part, 0).astype(np.float32) for part in parts]
    return AlignedChanges(parts, shared * signs)


def _factorize(
    matrix: Matrix | Factors,
) -> tuple[Float[np.ndarray, "I R"], Float[np.ndarray, "R O"]]:
    """Returns a matrix as orthogonal columns times a matrix of few rows."""
    if isinstance(matrix, Factors):
        basis, inner = np.linalg.qr(np.asarray(matrix.left, np.float64))
        return basis, inner @ np.asarray(matrix.right, np.float64)
    basis, inner = np.linalg.qr(np.asarray(matrix, np.float64))
    return basis, inner


def _ties_of_parts(
    layers: NetworkLayers,
    weights: tuple[float, ...],
    density: float,
) -> Callable[[Sequence[np.ndarray]], Tensor]:
    """Returns TIES of the parts of a layer, trimmed over those of all layers."""

    def list_parts() -> Iterator[Sequence[np.ndarray]]:
        for changes, inputs in layers():
            if is_matrix(inputs):
                yield align_changes(as_matrices(changes, inputs)).parts

    return trim_network(list_parts, weights, density)


@register_merge(
    "knots",
    options={"rank": RANK, "density": DENSITY, "scale": SCALE},
    find_conflict=find_no_matrix,
    shared_factor=lambda weights, options: options["scale"],
)
def _merge_knots(
    changes: Sequence[np.ndarray], inputs: MergeInputs, *, density: float, scale: float
) -> Tensor | Factors:
    """TIES in directions that all experts share."""
    if not is_matrix(inputs):
        return np.float32(scale) * weighted_sum(changes, inputs.weights)
    merge_parts = network_of(changes, inputs).measure(_ties_of_parts, tuple(inputs.weights), density)
    parts, shared = align_changes(as_matrices(changes, inputs))
    return Factors(scale * merge_parts(parts), shared)
