"""Average: the weighted mean of every parameter, the paper's merge (Jang et al., arXiv 2302.03202).

Every owned tensor takes part, norm scales included. Of bottlenecks and LoRA it averages the two factors, not
their product, so the merged expert's effect is near the mean of the effects but not equal to it; that is what
the paper's released code does, and `concatenate` is what does otherwise. Of (IA)³, norm scales and full
experts, which act linearly, it is the exact average of what each block gives.
"""

import numpy as np

from elm_jax.merging.method import Method
from elm_jax.merging.parts import Piece, mean

_FACTORS = "The two factors of every {} were averaged, not their product: the effect is near the mean effect."


def average(piece: Piece) -> list[np.ndarray]:
    """Returns the mean of every leaf, in float32."""
    leaves = range(len(piece.part.leaves))
    return [mean((value[leaf] for value in piece.values), piece.weights) for leaf in leaves]


METHOD = Method(
    says="the weighted mean of every parameter: the paper's merge",
    on="parameters",
    combine=average,
    notes={"adapter": _FACTORS.format("adapter"), "lora": _FACTORS.format("LoRA")},
)
