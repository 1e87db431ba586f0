"""Vote: how the neighbours of a task's queries elect experts for the whole task.

Retrieval of Experts (Jang et al., arXiv 2302.03202; the released code's `run_retrieval.py`) lets the nearest
key of each query vote for its expert. Two of that code's slips are mended here: all k neighbours vote (its
own count of them was overwritten by the nearest one), and the election closes when the queries end, however
few there are.
"""

import numpy as np
from jaxtyping import Float, Int

from elm_jax.errors import UserError
from elm_jax.records import Selection
from elm_jax.routing.evidence import Index, Queries

WEIGHTINGS = ("uniform", "votes")


def rank(
    voters: Int[np.ndarray, "Q K"], similarities: Float[np.ndarray, "Q K"], experts: int
) -> list[tuple[int, int]]:
    """Returns (expert, votes) of all experts that got any, the winner first.

    `voters` holds each neighbour's expert, nearest first; a negative one casts no vote. Equal votes are
    decided by the larger summed similarity, and if that is equal too, by the vote that came first.

    >>> rank(np.array([[2], [0], [0]]), np.array([[0.9], [0.1], [0.1]]), 3)
    [(0, 2), (2, 1)]
    """
    flat, nearness = voters.reshape(-1), similarities.reshape(-1).astype(np.float64)
    cast = flat >= 0
    counts = np.bincount(flat[cast], minlength=experts)
    sums = np.bincount(flat[cast], weights=nearness[cast], minlength=experts)
    order = sorted(
        (int(expert) for expert in np.flatnonzero(counts)),
        key=lambda expert: (-counts[expert], -sums[expert], np.argmax(flat == expert)),
    )
    return [(expert, int(counts[expert])) for expert in order]


def elect(
    router: str,
    queries: Queries,
    index: Index,
    voters: Int[np.ndarray, "Q K"],
    similarities: Float[np.ndarray, "Q K"],
    *,
    experts: int = 1,
    weighting: str = "uniform",
) -> Selection:
    """Returns the `experts` with most votes, or as many as got any.

    Their weights are equal, or with `weighting="votes"` as their votes. `queries` of the selection are those
    that voted, and `nearest` is the nearest expert of each of them.

    Raises a UserError if nobody voted, or if `experts` or `weighting` make no sense.
    """
    if experts < 1:
        raise UserError(f"At least one expert is wanted for {queries.task!r}, but {experts} came.")
    if weighting not in WEIGHTINGS:
        raise UserError(f"Weights are wanted as one of {', '.join(WEIGHTINGS)}, but {weighting!r} came.")
    ranked = rank(voters, similarities, len(index.experts))
    if not ranked:
        raise UserError(
            f"No query of {queries.task!r} is near any key, so router {router!r} has no vote to count. "
            "Give other queries, or choose another router."
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
