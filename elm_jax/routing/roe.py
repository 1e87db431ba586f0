"""RoE: Retrieval of Experts, the paper's router (Jang et al., arXiv 2302.03202).

Each of a few unlabelled inputs of a task looks up its nearest keys in the library by dot product, each key
votes for the expert whose training input it is, and the winner serves the task; or, per instance, each input
is served by its own winner. Equally near keys are ordered by row, votes as `vote.rank_experts` says. What the
released code does otherwise can be switched on with `faithful`: True, or names of `original.SWITCHES`.
"""

from collections.abc import Collection

import numpy as np
from jaxtyping import Float, Int

from elm_jax.records import Selection
from elm_jax.routing import original, search, vote
from elm_jax.routing.inputs import (
    KeyIndex,
    Queries,
    find_allowed_experts,
    find_allowed_keys,
    require_vectors,
)
from elm_jax.routing.registry import register_router


def find_neighbours(
    queries: Queries,
    index: KeyIndex,
    k: int = 1,
    *,
    exclude: Collection[str] = (),
    switches: original.Switches = frozenset(),
) -> tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]:
    """Returns each query's `k` nearest keys, nearest first: their similarities and their rows.

    Args:
        queries: The queries.
        index: The keys.
        k: How many keys are found for each query.
        exclude: Datasets; keys of experts that were trained on one of them are skipped. If fewer than `k`
            keys are left, the rest is row -1.
        switches: The ways of the original that are on.

    Raises:
        UserError: If queries and index do not compare, or if the index has fewer than `k` rows.
    """
    index = original.adapt_index(index, switches)
    vectors = require_vectors(queries, index, any_text_format="raw_queries" in switches)
    allowed = find_allowed_keys(index, find_allowed_experts(index, exclude))
    if "ties" in switches:
        return original.find_last_of_equals(vectors, index, k, allowed)
    similarities, rows = search.top_k(vectors, index.vectors, k, allowed=allowed)
    return np.asarray(similarities), np.asarray(rows)


@register_router("roe", reads=("vectors",))
def roe(
    queries: Queries,
    index: KeyIndex,
    *,
    k: int = 1,
    experts: int = 1,
    weighting: str = "uniform",
    faithful: bool | Collection[str] = False,
    exclude: Collection[str] = (),
) -> Selection:
    """The experts with most votes among the nearest keys of every query.

    Args:
        queries: The queries.
        index: The keys.
        k: How many keys of each query vote.
        experts: How many experts to take; fewer if fewer got votes.
        weighting: "uniform", or "votes" for weights in proportion to them.
        faithful: Ways of the original, see `original.SWITCHES`.
        exclude: Datasets; experts that were trained on one of them neither vote nor win.

    Raises:
        UserError: If queries and index do not compare, or an option is not valid.
    """
    switches = original.resolve_switches(faithful)
    similarities, rows = find_neighbours(queries, index, k, exclude=exclude, switches=switches)
    voters, similarities = original.adapt_votes(_experts_of_rows(index, rows), similarities, index, switches)
    return vote.elect_experts(
        "roe",
        queries,
        index,
        voters,
        similarities,
        experts=experts,
        weighting=weighting,
        sum_ties="first_vote" not in switches,
    )


@register_router("roe_per_instance", level="row", reads=("vectors",))
def roe_per_instance(
    queries: Queries, index: KeyIndex, *, k: int = 1, exclude: Collection[str] = ()
) -> Selection:
    """For every query the expert with most votes among the query's own nearest keys.

    It was compared with no other implementation.

    Args:
        queries: The queries.
        index: The keys.
        k: How many keys of each query vote.
        exclude: As `roe` has it.

    Returns:
        A selection whose `nearest` holds, query by query, that expert and the similarity of its nearest key;
        `votes` counts the queries that each expert serves, and `weights` are their shares.

    Raises:
        UserError: If queries and index do not compare.
    """
    similarities, rows = find_neighbours(queries, index, k, exclude=exclude)
    owners = _experts_of_rows(index, rows)
    winners = np.array(
        [
            vote.rank_experts(own[None], near[None], len(index.experts))[0][0]
            for own, near in zip(owners, similarities, strict=True)
        ]
    )
    best = np.where(owners == winners[:, None], similarities, -np.inf).max(axis=1)
    return vote.elect_experts(
        "roe_per_instance",
        queries,
        index,
        winners[:, None],
        best[:, None],
        experts=len(index.experts),
        weighting="votes",
    )


def _experts_of_rows(index: KeyIndex, rows: Int[np.ndarray, "Q k"]) -> Int[np.ndarray, "Q k"]:
    """Returns the position of each row's expert; -1 for row -1."""
    return np.where(rows >= 0, index.expert_of_row[rows], -1)
