"""Centroid: every query votes for the expert whose keys lie around it, by cosine to their mean.

Each expert counts as one point, as in the key-centroid routing that Retrieval of Experts (arXiv 2302.03202)
is compared with: one odd key does not decide, and an expert with more keys has no better chances.
"""

import itertools
from collections.abc import Collection

import numpy as np
from jaxtyping import Float

from elm_jax.axes import Embeddings
from elm_jax.records import Selection
from elm_jax.routing import search, vote
from elm_jax.routing.inputs import KeyIndex, Queries, find_experts_with_keys, require_vectors
from elm_jax.routing.registry import register_router


@register_router("centroid", reads=("vectors",))
def centroid(
    queries: Queries,
    index: KeyIndex,
    *,
    k: int = 1,
    experts: int = 1,
    weighting: str = "uniform",
    exclude: Collection[str] = (),
) -> Selection:
    """The experts that most queries are nearest to, by cosine to the mean of each expert's keys.

    Args:
        queries: The queries.
        index: The keys.
        k: How many experts each query votes for; of equally near ones the first of the index is nearer.
        experts: As `roe.roe` has it, and so the other options.
        weighting: "uniform" or "votes".
        exclude: Datasets; experts that were trained on one of them neither get votes nor win.

    Raises:
        UserError: If queries and index do not compare, or an option is not valid.
    """
    vectors = require_vectors(queries, index)
    allowed = find_experts_with_keys(index, exclude)
    means = index.once("centroid", lambda: mean_directions(index))
    similarities, nearest = search.top_k(normalize(vectors), means, k, allowed=allowed)
    return vote.elect_experts(
        "centroid",
        queries,
        index,
        np.asarray(nearest),
        np.asarray(similarities),
        experts=experts,
        weighting=weighting,
    )


def mean_directions(index: KeyIndex) -> Float[np.ndarray, "E D"]:
    """Returns the direction of each expert's mean key; zero for an expert without keys."""
    sums = np.zeros((len(index.experts), index.vectors.shape[1]), np.float64)
    # One expert at a time: a copy of all keys in float64 would stand beside them.
    edges = np.searchsorted(index.expert_of_row, np.arange(len(index.experts) + 1)).tolist()
    keys = np.asarray(index.vectors)
    for expert, (first, last) in enumerate(itertools.pairwise(edges)):
        sums[expert] = np.asarray(keys[first:last], np.float64).sum(axis=0)
    return normalize(sums)


def normalize(vectors: Embeddings) -> Float[np.ndarray, "N D"]:
    """Returns vectors of length 1 in the same directions; 0 stays 0."""
    wide = np.asarray(vectors, np.float64)
    length = np.linalg.norm(wide, axis=-1, keepdims=True)
    # A vector of length 0 has no direction: it stays 0 and is equally far from all experts.
    return (wide / np.where(length == 0.0, 1.0, length)).astype(np.float32)
