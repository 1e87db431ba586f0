"""Uniform: every expert with the same weight, whatever the task; the baseline of routers."""

from collections.abc import Collection

import numpy as np

from elm_jax.records import Selection
from elm_jax.routing.inputs import KeyIndex, Queries, find_allowed_experts
from elm_jax.routing.registry import register_router


@register_router("uniform")
def uniform(queries: Queries, index: KeyIndex, *, exclude: Collection[str] = ()) -> Selection:
    """All experts with equal weights.

    Args:
        queries: Only the task's name is read.
        index: The experts.
        exclude: Datasets; experts that were trained on one of them are left out.

    Raises:
        UserError: If no expert is left.
    """
    allowed = np.flatnonzero(find_allowed_experts(index, exclude))
    return Selection(
        task=queries.task,
        router="uniform",
        weights={index.experts[expert]: 1.0 / len(allowed) for expert in allowed},
        votes={},
        queries=(),
    )
