"""Uniform: every expert with the same weight, whatever the task; what a router has to beat."""

from collections.abc import Collection

import numpy as np

from elm_jax.records import Selection
from elm_jax.routing import evidence
from elm_jax.routing.evidence import Index, Queries


def uniform(queries: Queries, index: Index, *, exclude: Collection[str] = ()) -> Selection:
    """Returns all experts, equally weighted, but those trained on a dataset in `exclude`.

    Raises a UserError when none is left.
    """
    allowed = np.flatnonzero(evidence.candidates(index, exclude))
    return Selection(
        task=queries.task,
        router="uniform",
        weights={index.experts[expert]: 1.0 / len(allowed) for expert in allowed},
        votes={},
        queries=(),
    )
