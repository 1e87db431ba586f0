"""Original: the defects of the released retrieval code, each to be switched on for comparison; all are off.

`run_retrieval.py` and `make_index.py` of Retrieval of Experts (arXiv 2302.03202). What crashes there has no
switch: its BM25, and an election that never ends below 33 queries. Users switch them on with the option
`faithful` of the router `roe`.
"""

from collections.abc import Collection
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, Int

from elm_jax import names
from elm_jax.axes import Array, Embeddings, Encoded
from elm_jax.errors import UserError
from elm_jax.routing import search
from elm_jax.routing.inputs import KeyIndex

Switches = frozenset[str]
"""The switches that are on."""
SWITCHES = {
    "ties": "experts stand in a dictionary by similarity: of equally near keys only the last votes",
    "first_vote": "of experts with equally many votes the one wins that got its first vote earliest",
    "nearest_only": "the vote of k neighbours is overwritten by that of the nearest",
    "raw_queries": "queries are bare inputs, whatever the format of the keys, for encoders that pool by mean",
    "padded_keys": "keys that `routing.index` pooled over padding are compared with queries that are not",
    "renamed": "votes for one expert go to another, `REDIRECTED_PROMPTS`",
}
REDIRECTED_PROMPTS = {"ag_news/which_section": "ag_news/which_section_choices"}
RAW_TEXT_FORMAT = "instance_new"  # the text format of a bare input
PADDED_LENGTH = 256
PADDED_SUFFIX = ", padding included"  # at the end of the embedder's name of keys that were pooled so


def resolve_switches(faithful: bool | Collection[str]) -> Switches:
    """Returns the switches that are on.

    Args:
        faithful: True for all, False for none, or the names of some.

    Raises:
        UserError: If a name is not known.
    """
    if isinstance(faithful, bool):
        return frozenset(SWITCHES if faithful else ())
    named = [faithful] if isinstance(faithful, str) else faithful
    return frozenset(
        names.resolve(name, SWITCHES, kind="switch", where="the original's ways") for name in named
    )


def adapt_index(index: KeyIndex, switches: Switches) -> KeyIndex:
    """Returns the index, with keys that were pooled over padding passed off as others if that is on."""
    if "padded_keys" not in switches:
        return index
    return replace(index, embedder=index.embedder.removesuffix(PADDED_SUFFIX))


def adapt_votes(
    voters: Int[np.ndarray, "Q K"],
    similarities: Float[np.ndarray, "Q K"],
    index: KeyIndex,
    switches: Switches,
) -> tuple[Int[np.ndarray, "Q k"], Float[np.ndarray, "Q k"]]:
    """Returns the votes that the original counts, and their similarities."""
    if "nearest_only" in switches:
        voters, similarities = voters[:, :1], similarities[:, :1]
    if "renamed" in switches:
        voters = np.where(voters >= 0, redirect_votes(index)[voters], -1)
    return voters, similarities


def query_text_format(faithful: bool | Collection[str]) -> str | None:
    """Returns the text format of queries if it is not the keys'."""
    return RAW_TEXT_FORMAT if "raw_queries" in resolve_switches(faithful) else None


def find_last_of_equals(
    vectors: Float[Array, "Q D"], index: KeyIndex, k: int, allowed: Bool[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]:
    """Returns each query's `k` largest distinct similarities, and of equally near rows the last."""
    count = len(index.texts)
    if not 1 <= k <= count:
        raise UserError(f"Expected k from 1 to {count}, the number of keys, got {k}.")
    # Backwards, because a search puts the first of equals first. Equals take places, so more must be found.
    similarities, rows = (
        np.array(array)
        for array in search.top_k(
            vectors, index.vectors[::-1], 1 if k == 1 else count, allowed=allowed[::-1].copy()
        )
    )
    rows = np.where(rows >= 0, count - 1 - rows, -1)
    distinct = np.full((len(rows), k), -np.inf, np.float32), np.full((len(rows), k), -1, rows.dtype)
    for query, near in enumerate(similarities):
        new = np.flatnonzero((rows[query] >= 0) & (np.append(True, near[1:] != near[:-1])))[:k]
        distinct[0][query, : len(new)], distinct[1][query, : len(new)] = near[new], rows[query, new]
    return distinct


def redirect_votes(index: KeyIndex) -> Int[np.ndarray, " E"]:
    """Returns which expert gets the votes for each: another for `REDIRECTED_PROMPTS`, if it is there."""
    positions = {expert: position for position, expert in enumerate(index.experts)}
    return np.array(
        [positions.get(REDIRECTED_PROMPTS.get(expert, expert), positions[expert]) for expert in index.experts]
    )


def average_over_padding(hidden: Encoded) -> Embeddings:
    """Returns the mean over all positions of texts padded to 256 tokens, padding included.

    The released index pools its keys so, but not its queries, for encoders that pool by mean.
    """
    if hidden.shape[1] != PADDED_LENGTH:
        raise UserError(f"Expected texts padded to {PADDED_LENGTH} tokens, got {hidden.shape[1]}.")
    return np.asarray(hidden, np.float32).mean(axis=1)
