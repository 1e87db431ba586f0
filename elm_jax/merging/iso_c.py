"""Iso-C: the sum of the changes, with all its singular values made equal (Marczak et al., arXiv 2502.04959).

`Σ ΔW = U S Vᵀ`, merged `mean(S) U Vᵀ`. What is no matrix is averaged, as in the authors' code. The result is
multiplied by λ, `scale`.

Of a sum of low rank, as that of LoRA, the authors' code takes vectors of the null space too, which are
arbitrary. Here only singular values above 0 take part, in U Vᵀ and in the mean, which leaves their sum as it
was, as it is at full rank; so the result depends on the experts' changes alone.
"""

from collections.abc import Sequence

import numpy as np

from elm_jax.merging.changes import RANK, SCALE, as_matrices, find_no_matrix
from elm_jax.merging.lowrank import Factors, Matrix, add_matrices, decompose
from elm_jax.merging.parameter_groups import MergeInputs, Tensor, is_matrix, scale_to_unit_mean, weighted_sum
from elm_jax.merging.registry import register_merge


def iso_c(matrices: Sequence[Matrix | Factors], weights: Sequence[float]) -> Factors:
    """Returns the weighted sum of the matrices with the mean of its singular values in place of each."""
    left, sizes, right = decompose(add_matrices(matrices, weights))
    return Factors(left * (sizes.mean() if len(sizes) else 0.0), right)


@register_merge(
    "iso_c",
    options={"rank": RANK, "scale": SCALE},
    find_conflict=find_no_matrix,
    shared_factor=lambda weights, options: options["scale"],
)
def _merge_iso_c(changes: Sequence[np.ndarray], inputs: MergeInputs, *, scale: float) -> Tensor | Factors:
    """The sum of the changes with all its singular values made equal."""
    if not is_matrix(inputs):
        return np.float32(scale) * weighted_sum(changes, inputs.weights)
    left, right = iso_c(as_matrices(changes, inputs), scale_to_unit_mean(inputs.weights))
    return Factors(scale * left, right)
