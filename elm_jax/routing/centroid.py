"""Centroid: every query votes for the expert whose keys lie around it, by cosine to their mean.

A library then weighs each expert as one point, as in the key-centroid routing that Retrieval of Experts
(arXiv 2302.03202) is compared with: one odd key no longer decides, and an expert with more keys has no more
chances.
"""

from collections.abc import Collection

import numpy as np
from jaxtyping import Float

from elm_jax.axes import Embeddings
from elm_jax.records import Selection
from elm_jax.routing import evidence, search, vote
from elm_jax.routing.evidence import Index, Queries


def centroid(
    queries: Queries,
    index: Index,
    *,
    k: int = 1,
    experts: int = 1,
    weighting: str = "uniform",
    exclude: Collection[str] = (),
) -> Selection:
    """Returns the experts that most queries are nearest to, by cosine to the mean of each expert's keys.

    With `k` above 1 each query votes for its `k` nearest experts. The other options are RoE's. Of equally
    near experts the first of the index is nearer.

    Raises a UserError if queries and index do not compare, or an option makes no sense.
    """
    vectors = evidence.vectors_of(queries, index)
    allowed = evidence.candidates(index, exclude)
    allowed &= np.isin(np.arange(len(index.experts)), index.expert_of_row[evidence.rows_of(index, allowed)])
    similarities, nearest = search.top_k(_unit(vectors), _means(index), k, allowed=allowed)
    return vote.elect(
        "centroid",
        queries,
        index,
        np.asarray(nearest),
        np.asarray(similarities),
        experts=experts,
        weighting=weighting,
    )


def _means(index: Index) -> Float[np.ndarray, "E D"]:
    """Returns the direction of each expert's mean key; zero for an expert without keys."""
    sums = np.zeros((len(index.experts), index.vectors.shape[1]), np.float64)
    np.add.at(sums, index.expert_of_row, np.asarray(index.vectors, np.float64))
    return _unit(sums)


def _unit(vectors: Embeddings) -> Float[np.ndarray, "N D"]:
    wide = np.asarray(vectors, np.float64)
    length = np.linalg.norm(wide, axis=-1, keepdims=True)
    # A vector of length 0 has no direction: it stays 0 and is as far from one expert as from the next.
    return (wide / np.where(length == 0.0, 1.0, length)).astype(np.float32)
