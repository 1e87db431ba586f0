"""Task arithmetic: the base plus λ times the weighted sum of what experts change (Ilharco et al. 2022).

arXiv 2212.04089, section 2: `base + λ Σ w ΔW`. Weights are factors as given, by default 1 each, and may be
negative to unlearn. By default λ (`scale`) is 1 / Σ w, which makes the sum the weighted mean (the paper of
this library is said to use λ = 1/N). It then differs from `average` in that LoRA is merged as ΔW.
"""

from collections.abc import Sequence

import numpy as np

from elm_jax.merging.changes import OPTIONS
from elm_jax.merging.method import MergeOption, Options
from elm_jax.merging.parameter_groups import MergeInputs, Tensor, weighted_sum
from elm_jax.merging.registry import register_merge


def task_arithmetic(changes: Sequence[np.ndarray], weights: Sequence[float], scale: float) -> Tensor:
    """Returns λ Σ w ΔW."""
    return weighted_sum(changes, [scale * weight for weight in weights])


def _shared_factor(weights: tuple[float, ...], options: Options) -> float:
    return 1.0 if options["scale"] is None else options["scale"] * sum(weights)


@register_merge(
    "task_arithmetic",
    options={
        **OPTIONS,
        "scale": MergeOption(
            float, None, "λ; default: 1 / Σ w, which makes the sum a mean", "a finite number"
        ),
    },
    weights_as_given=True,
    shared_factor=_shared_factor,
)
def _merge_task_arithmetic(
    changes: Sequence[np.ndarray], inputs: MergeInputs, *, scale: float | None
) -> Tensor:
    """Base + λ Σ w ΔW."""
    weights = inputs.weights
    return task_arithmetic(changes, weights, 1 / sum(weights) if scale is None else scale)
