"""DARE: changes are dropped at random and the rest enlarged before they are merged (Yu et al., 2311.03099).

Section 3.2: every value of ΔW is kept with probability `density` (the paper's 1 - p) and divided by it, so
that its expectation stays. What is left is averaged, or goes through TIES' election of signs (`then`). The
paper drops nine in ten values of networks of billions and fewer of small ones; the default here is half.

Which values of an expert are dropped depends on the seed, its id and the tensor, not on the other experts or
their order. If all experts are the same expert, nothing interferes, and it comes back whole.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from elm_jax.merging.changes import OPTIONS, SCALE
from elm_jax.merging.method import MergeOption
from elm_jax.merging.parameter_groups import MergeInputs, Tensor, weighted_sum
from elm_jax.merging.registry import register_merge
from elm_jax.merging.ties import SHARE, elect_signs

SEED = MergeOption(int, 0, "of what is dropped", "a whole number of at least 0", lambda value: value >= 0)


def drop_values(
    change: Float[np.ndarray, "*shape"], density: float, mask: Bool[np.ndarray, "*shape"]
) -> Tensor:
    """Returns the change with zeros where the mask is False, and the other values divided by `density`."""
    return np.where(mask, change / np.float32(density), np.float32(0))


def draw_numbers(
    shape: tuple[int, ...], seed: int, expert_id: str, path: str, layer: int | None
) -> Float[np.ndarray, "..."]:
    """Returns a number from 0 to 1 for each value of one expert's tensor."""
    words = hashlib.sha256(f"{expert_id}\n{path}\n{layer}".encode()).digest()
    random = np.random.default_rng([seed, *np.frombuffer(words, "<u4").tolist()])
    return random.random(shape, np.float32)


@register_merge(
    "dare",
    options={
        **OPTIONS,
        "density": MergeOption(float, 0.5, "share of values kept", SHARE, lambda value: 0 < value <= 1),
        "seed": SEED,
        "then": MergeOption(
            str,
            "average",
            "what follows: average, or ties' election of signs",
            "'average' or 'ties'",
            lambda value: value in ("average", "ties"),
        ),
        "scale": SCALE,
    },
    shared_factor=lambda weights, options: options["scale"],
)
def _merge_dare(
    changes: Sequence[np.ndarray], inputs: MergeInputs, *, density: float, seed: int, then: str, scale: float
) -> Tensor:
    """Changes dropped at random and the rest enlarged, then averaged or merged as TIES does."""
    path, layer = inputs.group.path, inputs.layer
    dropped = (
        drop_values(change, density, draw_numbers(change.shape, seed, expert_id, path, layer) < density)
        for change, expert_id in zip(changes, inputs.expert_ids, strict=True)
    )
    combine = elect_signs if then == "ties" else weighted_sum
    return np.float32(scale) * combine(dropped, inputs.weights)
