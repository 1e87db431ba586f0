"""Vote: how the neighbours of a task's queries elect experts for the whole task.

Retrieval of Experts (Jang et al., arXiv 2302.03202; the released code's `run_retrieval.py`) lets the nearest
key of each query vote for its expert. Two defects of that code are not here: all k neighbours vote (there the
nearest one overwrites the others), and the election ends with the queries, however few there are.
"""

import numpy as np
from jaxtyping import Float, Int

from elm_jax.errors import UserError
from elm_jax.records import Selection
from elm_jax.routing.inputs import KeyIndex, Queries

WEIGHTINGS = ("uniform", "votes")


def rank_experts(
    voters: Int[np.ndarray, "Q K"],
    similarities: Float[np.ndarray, "Q K"],
    experts: int,
    *,
    sum_ties: bool = True,
) -> list[tuple[int, int]]:
    """Returns (expert, votes) of all experts that got votes, the winner first.

    Equal votes are decided by the larger summed similarity, and if that is equal too, by the first vote.

    Args:
        voters: The position of each neighbour's expert, nearest first; a negative one casts no vote.
        similarities: Of the neighbours.
        experts: How many experts there are.
        sum_ties: Whether the summed similarity decides; without it the first vote does.

    >>> rank_experts(np.array([[2], [0], [0]]), np.array([[0.9], [0.1], [0.1]]), 3)
    [(0, 2), (2, 1)]
    """
    flat, nearness = voters.reshape(-1), similarities.reshape(-1).astype(np.float64)
    cast = flat >= 0
    counts = np.bincount(flat[cast], minlength=experts)
    sums = np.bincount(flat[cast], weights=nearness[cast] if sum_ties else None, minlength=experts)
    order = sorted(
        (int(expert) for expert in np.flatnonzero(counts)),
        key=lambda expert: (-counts[expert], -sums[expert], np.argmax(flat == expert)),
    )
    return [(expert, int(counts[expert])) for expert in order]


def elect_experts(
    router: str,
    queries: Queries,
    index: KeyIndex,
    voters: Int[np.ndarray, "Q K"],
    similarities: Float[np.ndarray, "Q K"],
    *,
    experts: int = 1,
    weighting: str = "uniform",
    sum_ties: bool = True,
) -> Selection:
    """Returns the selection of the experts with most votes.

    Args:
        router: The router's name.
        queries: The queries.
        index: The keys.
        voters: For each query the positions of its neighbours' experts, nearest first; -1 casts no vote.
        similarities: Of the neighbours.
        experts: How many experts to take; fewer if fewer got votes.
        weighting: "uniform", or "votes" for weights in proportion to them.
        sum_ties: As `rank_experts` has it.

    Returns:
        The selection; its `queries` are those that voted, `nearest` the nearest expert of each.

    Raises:
        UserError: If there is no vote, or if `experts` or `weighting` is not valid.
    """
    if experts < 1:
        raise UserError(f"Expected at least one expert for {queries.task!r}, got {experts}.")
    if weighting not in WEIGHTINGS:
        raise UserError(f"Expected weighting {' or '.join(WEIGHTINGS)}, got {weighting!r}.")
    ranked = rank_experts(voters, similarities, len(index.experts), sum_ties=sum_ties)
    if not ranked:
        raise UserError(
            f"Expected queries of {queries.task!r} near some key, got none, so router {router!r} has no vote "
            "to count. Fix: give other queries, or choose another router."
        )
    voted = np.flatnonzero(voters[:, 0] >= 0)
    chosen = ranked[:experts]
    shares = [votes if weighting == "votes" else 1 for _, votes in chosen]
    return Selection(
        task=queries.task,
        router=router,
        weights={
            index.experts[expert]: share / sum(shares)
            for (expert, _), share in zip(chosen, shares, strict=True)
        },
        votes={index.experts[expert]: votes for expert, votes in ranked},
        queries=tuple(queries.row_ids[query] for query in voted),
        nearest=tuple((index.experts[voters[query, 0]], float(similarities[query, 0])) for query in voted),
    )
