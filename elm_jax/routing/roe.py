"""RoE: Retrieval of Experts, the paper's router (Jang et al., arXiv 2302.03202).

Each of a few unlabelled inputs of a task looks up its nearest keys in the library by dot product, each key
votes for the expert whose training input it is, and the winner serves the task; or, per instance, each input
is served by its own winner. Equally near keys are ordered by row, votes as `vote.rank` says. What the
released code does otherwise can be had with `faithful`: True, or names of `faithful.SWITCHES`.
"""

from collections.abc import Collection
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from elm_jax.records import Selection
from elm_jax.routing import evidence, search, vote
from elm_jax.routing import faithful as switches
from elm_jax.routing.evidence import Index, Queries


def neighbours(
    queries: Queries,
    index: Index,
    k: int = 1,
    *,
    exclude: Collection[str] = (),
    faithful: bool | Collection[str] = False,
) -> tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]:
    """Returns each query's `k` nearest rows of the index, nearest first: similarities and rows.

    Keys of experts trained on a dataset in `exclude` are passed over; where fewer than `k` keys are left,
    the rest is row -1.

    Raises a UserError if queries and index do not compare, or if the index holds fewer than `k` rows.
    """
    on = switches.chosen(faithful)
    if "padded_keys" in on:
        index = replace(index, embedder=index.embedder.removesuffix(switches.PADDED))
    vectors = evidence.vectors_of(queries, index, any_format="raw_queries" in on)
    allowed = evidence.rows_of(index, evidence.candidates(index, exclude))
    if "ties" in on:
        return switches.last_of_equals(vectors, index, k, allowed)
    similarities, rows = search.top_k(vectors, index.vectors, k, allowed=allowed)
    return np.asarray(similarities), np.asarray(rows)


def roe(
    queries: Queries,
    index: Index,
    *,
    k: int = 1,
    experts: int = 1,
    weighting: str = "uniform",
    faithful: bool | Collection[str] = False,
    exclude: Collection[str] = (),
) -> Selection:
    """Returns the experts with most votes among the `k` nearest keys of every query.

    `experts` is how many to take (fewer if fewer got votes), `weighting` "uniform" or "votes". Excluded
    experts (those trained on a dataset in `exclude`) neither vote nor win.

    Raises a UserError if queries and index do not compare, or an option makes no sense.
    """
    on = switches.chosen(faithful)
    similarities, rows = neighbours(queries, index, k, exclude=exclude, faithful=on)
    voters = _owners(index, rows)
    if "nearest_only" in on:
        voters, similarities = voters[:, :1], similarities[:, :1]
    if "renamed" in on:
        voters = np.where(voters >= 0, switches.renamed(index)[voters], -1)
    return vote.elect("roe", queries, index, voters, similarities, experts=experts, weighting=weighting)


def roe_per_instance(
    queries: Queries, index: Index, *, k: int = 1, exclude: Collection[str] = ()
) -> Selection:
    """Returns an expert for every query, the one with most votes among the query's own `k` nearest keys.

    The selection's `nearest` holds, query by query, that expert and the similarity of its nearest key;
    `votes` counts the queries each expert serves and `weights` are their shares.

    Raises a UserError if queries and index do not compare.
    """
    similarities, rows = neighbours(queries, index, k, exclude=exclude)
    owners = _owners(index, rows)
    winners = np.array(
        [
            vote.rank(own[None], near[None], len(index.experts))[0][0]
            for own, near in zip(owners, similarities, strict=True)
        ]
    )
    best = np.where(owners == winners[:, None], similarities, -np.inf).max(axis=1)
    return vote.elect(
        "roe_per_instance",
        queries,
        index,
        winners[:, None],
        best[:, None],
        experts=len(index.experts),
        weighting="votes",
    )


def _owners(index: Index, rows: Int[np.ndarray, "Q k"]) -> Int[np.ndarray, "Q k"]:
    return np.where(rows >= 0, index.expert_of_row[rows], -1)
