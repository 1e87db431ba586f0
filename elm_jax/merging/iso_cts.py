"""Iso-CTS: Iso-C with a space for what is each expert's own (Marczak et al., arXiv 2502.04959).

Of m = min(I, O) directions a share `common` is that of the experts' sum, its first singular vectors. The rest
is divided evenly: from each ΔW what lies in the outputs of the common space is taken away, and the first
vectors of what is left are its own. All are made orthogonal as in TSV-M, with the mean of all their singular
values. What is no matrix is averaged, as in the authors' code. The result is multiplied by λ, `scale`.

Of LoRA the authors' code takes vectors of the null space too, which are arbitrary. Here m is at most the sum
of the experts' ranks, which is how many directions there are; only singular values above 0 take part, and
polar(X) is 0 on X's null space. So the result depends on the experts' changes alone.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from elm_jax.merging.changes import RANK, SCALE, as_matrices, find_no_matrix
from elm_jax.merging.lowrank import Factors, Matrix, add_matrices, decompose, orthogonalize
from elm_jax.merging.method import MergeOption
from elm_jax.merging.parameter_groups import MergeInputs, Tensor, is_matrix, scale_to_unit_mean, weighted_sum
from elm_jax.merging.registry import register_merge


def iso_cts(matrices: Sequence[Matrix | Factors], weights: Sequence[float], common: float) -> Factors:
    """Returns the merged matrix.

    Args:
        matrices: One [I, O] per expert.
        weights: One per expert, by which it is multiplied.
        common: The share of directions that are those of the sum.
    """
    directions = _count_directions(matrices)
    own = min(round((directions - int(directions * common)) / len(matrices)), directions // len(matrices))
    left, sizes, right = decompose(add_matrices(matrices, weights))
    shared = directions - own * len(matrices)
    parts = [(left[:, :shared], sizes[:shared], right[:shared])]
    for matrix, weight in zip(matrices, weights, strict=True):
        rest, norm = _project_out(matrix, parts[0][2])
        left, sizes, right = decompose(rest, norm)
        parts.append((left[:, :own], sizes[:own] * weight, right[:own]))
    every_left, every_size, every_right = zip(*parts, strict=True)
    sizes = np.concatenate(every_size)
    inputs = orthogonalize(np.concatenate(every_left, axis=1))
    return Factors(inputs * (sizes.mean() if len(sizes) else 0.0), orthogonalize(np.concatenate(every_right)))


def _count_directions(matrices: Sequence[Matrix | Factors]) -> int:
    first = matrices[0]
    if isinstance(first, Factors):
        ranks = [matrix.left.shape[1] for matrix in matrices if isinstance(matrix, Factors)]
        return min(len(first.left), first.right.shape[1], sum(ranks))
    return min(first.shape)


def _project_out(matrix: Matrix | Factors, space: Float[np.ndarray, "R O"]) -> tuple[Matrix | Factors, float]:
    """Returns the matrix without the outputs in a space of orthogonal rows, and the norm that it had."""
    if isinstance(matrix, Factors):
        right = np.asarray(matrix.right, np.float64)
        norm = float(np.linalg.norm(decompose(matrix).sizes))
        return Factors(matrix.left, right - (right @ space.T) @ space), norm
    whole = np.asarray(matrix, np.float64)
    return whole - (whole @ space.T) @ space, float(np.linalg.norm(whole))


@register_merge(
    "iso_cts",
    options={
        "rank": RANK,
        "common": MergeOption(
            float,
            0.8,
            "share of directions that are those of the sum",
            "a share from 0 to 1",
            lambda value: 0 <= value <= 1,
        ),
        "scale": SCALE,
    },
    find_conflict=find_no_matrix,
    shared_factor=lambda weights, options: options["scale"],
)
def _merge_iso_cts(
    changes: Sequence[np.ndarray], inputs: MergeInputs, *, common: float, scale: float
) -> Tensor | Factors:
    """As iso_c, with directions for what is each expert's own."""
    if not is_matrix(inputs):
        return np.float32(scale) * weighted_sum(changes, inputs.weights)
    left, right = iso_cts(as_matrices(changes, inputs), scale_to_unit_mean(inputs.weights), common)
    return Factors(scale * left, right)
