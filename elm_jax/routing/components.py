"""Components: what a task's chosen LoRA experts have is used by parts, which every token chooses (HiLoRA).

The second half of "HiLoRA: Adaptive Hierarchical LoRA Routing for Training-Free Domain Generalization" (Han
et al. 2025, arXiv 2510.12266): the experts chosen for a task (by `hilora`, or any other router) share a
budget of rank-one components by their weights, and of each expert every token uses those that it excites
most. It was written from descriptions of the paper, and there is no independent implementation to compare
with. The paper draws the shares from a multinomial distribution; here they are in proportion. What it does to
keep the variance of outputs is not described there, and is left out.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from elm_jax.merging.method import MergeOption
from elm_jax.models import components
from elm_jax.records import Params
from elm_jax.routing import token_gate

COMPONENTS = "components"
"""What stands in a method's string in the place of a merge."""
COMPONENT_OPTIONS = {
    "share": MergeOption(
        float,
        0.4,
        "of the chosen experts' components, that a token uses",
        "above 0, at most 1",
        is_valid=lambda value: 0 < value <= 1,
    )
}


def allocate_components(weights: Sequence[float], rank: int, share: float) -> list[int]:
    """Returns how many components a token uses of each expert, in proportion to their weights.

    All together are `share` of all that the experts have, one at least. They are given one by one to the
    expert of largest weight / (its number + 1), as D'Hondt gives seats, while it has more.

    >>> allocate_components([0.6, 0.3, 0.1], rank=4, share=0.5)
    [4, 2, 0]
    """
    counts = np.zeros(len(weights), int)
    for _ in range(max(1, round(share * len(weights) * rank))):
        counts[np.where(counts < rank, np.asarray(weights) / (counts + 1), -1).argmax()] += 1
    return counts.tolist()


def make_component_tree(stack: Params, weights: Sequence[float], share: float) -> dict[str, Any]:
    """Returns the tree that the network runs, of the chosen experts stacked, leaves [E, L, …].

    Raises:
        UserError: If they are no LoRA.
    """
    factors = token_gate.collect_lora_factors(stack)
    rank = next(iter(factors.values()))[0].shape[-1]
    return components.make_component_tree(stack, allocate_components(weights, rank, share))
