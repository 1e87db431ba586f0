"""Faithful: the slips of the released retrieval code, each to be switched on for comparison; all are off.

`run_retrieval.py` and `make_index.py` of Retrieval of Experts (arXiv 2302.03202). What crashes there has no
switch: its BM25, and an election that never closes below 33 queries.
"""

from collections.abc import Collection

import numpy as np
from jaxtyping import Bool, Float, Int

from elm_jax import names
from elm_jax.axes import Array, Embeddings, Encoded
from elm_jax.errors import UserError
from elm_jax.routing import search
from elm_jax.routing.evidence import Index

SWITCHES = {
    "ties": "experts stand in a dictionary by similarity: of equally near keys only the last votes",
    "nearest_only": "the vote of k neighbours is overwritten by that of the nearest",
    "raw_queries": "queries are bare inputs, whatever the format of the keys, for encoders that pool by mean",
    "padded_keys": "keys that `routing.index` pooled over padding are compared with queries that are not",
    "renamed": "votes for one expert go to another, `RENAMED`",
}
RENAMED = {"ag_news/which_section": "ag_news/which_section_choices"}
RAW = "instance_new"  # the text format of a bare input
PADDED_LENGTH = 256
PADDED = ", padding included"  # what follows the embedder's name of keys that were pooled so


def chosen(faithful: bool | Collection[str]) -> frozenset[str]:
    """Returns the switches that are on: all with True, those named, or none; an unknown name is an error."""
    if isinstance(faithful, bool):
        return frozenset(SWITCHES if faithful else ())
    named = [faithful] if isinstance(faithful, str) else faithful
    return frozenset(
        names.resolve(name, SWITCHES, kind="switch", where="the table of faithful ones") for name in named
    )


def last_of_equals(
    vectors: Float[Array, "Q D"], index: Index, k: int, allowed: Bool[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]:
    """Returns each query's `k` largest distinct similarities, and of equally near rows the last."""
    count = len(index.texts)
    if not 1 <= k <= count:
        raise UserError(f"Between 1 and the index's {count} nearest keys are wanted, but {k} came.")
    # Backwards, for a search puts the first of equals first. Equals take places, so that more must be found.
    similarities, rows = (
        np.array(found)
        for found in search.top_k(
            vectors, index.vectors[::-1], 1 if k == 1 else count, allowed=allowed[::-1].copy()
        )
    )
    rows = np.where(rows >= 0, count - 1 - rows, -1)
    distinct = np.full((len(rows), k), -np.inf, np.float32), np.full((len(rows), k), -1, rows.dtype)
    for query, near in enumerate(similarities):
        new = np.flatnonzero((rows[query] >= 0) & (np.append(True, near[1:] != near[:-1])))[:k]
        distinct[0][query, : len(new)], distinct[1][query, : len(new)] = near[new], rows[query, new]
    return distinct


def renamed(index: Index) -> Int[np.ndarray, " E"]:
    """Returns which expert gets the votes for each; those of `RENAMED` where the index has the other one."""
    place = {expert: position for position, expert in enumerate(index.experts)}
    return np.array([place.get(RENAMED.get(expert, expert), place[expert]) for expert in index.experts])


def padded_mean(hidden: Encoded) -> Embeddings:
    """Returns the mean over all places of texts padded to 256 tokens, padding included.

    So the released index pools its keys, but not its queries, for encoders that pool by mean.
    """
    if hidden.shape[1] != PADDED_LENGTH:
        raise UserError(f"Texts padded to {PADDED_LENGTH} tokens are wanted, but {hidden.shape[1]} came.")
    return np.asarray(hidden, np.float32).mean(axis=1)
