"""Task arithmetic: the base plus λ times the weighted sum of what experts change (Ilharco et al. 2022).

arXiv 2212.04089, section 2: `base + λ Σ w ΔW`. Weights are factors as given, 1 each without them, and may be
negative to unlearn. Without λ (`scale`) it is 1 / Σ w, which makes the sum the weighted mean (λ = 1/N is what
the paper of this library is said to use); what differs from `average` then is that LoRA is merged as ΔW.
"""

from collections.abc import Sequence

import numpy as np

from elm_jax.merging import changes as changed
from elm_jax.merging.method import Method, Option, Options
from elm_jax.merging.parts import Piece, Tensor, mean


def task_arithmetic(changes: Sequence[np.ndarray], weights: Sequence[float], scale: float) -> Tensor:
    """Returns λ Σ w ΔW."""
    return mean(changes, [scale * weight for weight in weights])


def _combine(changes: Sequence[np.ndarray], piece: Piece, *, scale: float | None) -> Tensor:
    weights = piece.weights
    return task_arithmetic(changes, weights, 1 / sum(weights) if scale is None else scale)


def _factor(weights: tuple[float, ...], options: Options) -> float:
    return 1.0 if options["scale"] is None else options["scale"] * sum(weights)


METHOD = Method(
    says="base + λ Σ w ΔW",
    on="changes",
    combine=_combine,
    options={
        **changed.OPTIONS,
        "scale": Option(float, None, "λ; without it 1 / Σ w, which makes the sum a mean", "A finite number"),
    },
    as_given=True,
    factor=_factor,
    needs_base=True,
    refusal=changed.refusal,
    notes=changed.NOTES,
)
