"""TSV-M: task singular vectors, those of all experts made orthogonal (Gargiulo et al., arXiv 2412.00081).

The first ⌊min(I, O)/N⌋ singular values of each of N experts' ΔW, with their vectors: `polar(U) diag(S)
polar(Vᵀ)` of the stacked ones, where polar(X) = U_X V_Xᵀ of X's decomposition. What is no matrix is averaged,
as in the authors' code. The result is multiplied by λ, `scale`.

Where an expert has fewer singular values above 0, as LoRA has, their code fills up with vectors of the null
space, which are arbitrary. Here only those above 0 take part, and polar(X) is 0 on X's null space, so that
the result depends on the experts' changes alone. At least one value of each takes part.
"""

from collections.abc import Sequence

import numpy as np

from elm_jax.merging.changes import RANK, SCALE, as_matrices, find_no_matrix
from elm_jax.merging.lowrank import Factors, Matrix, decompose, orthogonalize
from elm_jax.merging.parameter_groups import MergeInputs, Tensor, is_matrix, scale_to_unit_mean, weighted_sum
from elm_jax.merging.registry import register_merge


def tsvm(matrices: Sequence[Matrix | Factors], weights: Sequence[float]) -> Factors:
    """Returns the merged matrix; each expert's singular values are multiplied by its weight."""
    left, sizes, right = [], [], []
    for matrix, weight in zip(matrices, weights, strict=True):
        rows, columns = _shape(matrix)
        spectrum = decompose(matrix)
        kept = max(1, min(rows, columns) // len(matrices))
        left.append(spectrum.left[:, :kept])
        sizes.append(spectrum.sizes[:kept] * weight)
        right.append(spectrum.right[:kept])
    inputs = orthogonalize(np.concatenate(left, axis=1))
    return Factors(inputs * np.concatenate(sizes), orthogonalize(np.concatenate(right)))


def _shape(matrix: Matrix | Factors) -> tuple[int, int]:
    if isinstance(matrix, Factors):
        return len(matrix.left), matrix.right.shape[1]
    return matrix.shape[0], matrix.shape[1]


@register_merge(
    "tsvm",
    options={"rank": RANK, "scale": SCALE},
    find_conflict=find_no_matrix,
    shared_factor=lambda weights, options: options["scale"],
)
def _merge_tsvm(changes: Sequence[np.ndarray], inputs: MergeInputs, *, scale: float) -> Tensor | Factors:
    """The main singular vectors of each change, made orthogonal to one another."""
    if not is_matrix(inputs):
        return np.float32(scale) * weighted_sum(changes, inputs.weights)
    left, right = tsvm(as_matrices(changes, inputs), scale_to_unit_mean(inputs.weights))
    return Factors(scale * left, right)
