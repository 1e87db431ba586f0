"""BM25: every query votes for the expert whose key shares its rarest words (Robertson and Zaragoza, 2009).

It needs no embedder. The released code of Retrieval of Experts (arXiv 2302.03202) names it as an option, but
its index cannot be built; here it works row by row, like RoE.
"""

import logging
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from elm_jax.errors import UserError
from elm_jax.records import Selection
from elm_jax.routing import vote
from elm_jax.routing.inputs import (
    KeyIndex,
    Queries,
    find_allowed_experts,
    find_allowed_keys,
    require_texts,
)
from elm_jax.routing.registry import register_router

# Single letters and digits count, unlike in the customary pattern: answer choices are often called A or 1.
WORD_PATTERN = r"(?u)\b\w+\b"
MAX_KEPT_INDEXES = 4
"""Indexes that are kept: one of all keys, and those without the keys of a task's own dataset."""


@register_router("bm25", reads=("texts",))
def bm25(
    queries: Queries,
    index: KeyIndex,
    *,
    k: int = 1,
    experts: int = 1,
    weighting: str = "uniform",
    exclude: Collection[str] = (),
) -> Selection:
    """The experts with most votes among the keys that share the rarest words with every query.

    A key that shares no word with a query casts no vote. Equal scores are ordered by row. Word statistics
    are those of the keys that may be chosen.

    Args:
        queries: The queries.
        index: The keys.
        k: How many keys of highest BM25 vote for each query.
        experts: As `roe.roe` has it, and so the other options.
        weighting: "uniform" or "votes".
        exclude: Datasets; experts that were trained on one of them neither vote nor win.

    Raises:
        UserError: If texts are missing or of another format, if no query shares a word with any key, or if
            an option is not valid.
    """
    texts = require_texts(queries, index)
    rows = np.flatnonzero(find_allowed_keys(index, find_allowed_experts(index, exclude)))
    if not 1 <= k <= len(index.texts):
        raise UserError(f"Expected k from 1 to {len(index.texts)}, the number of keys, got {k}.")
    scores = _scores(texts, index, rows)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, axis=1)
    voters = np.where(best > 0.0, index.expert_of_row[rows[order]], -1)
    return vote.elect_experts("bm25", queries, index, voters, best, experts=experts, weighting=weighting)


def _scores(queries: Sequence[str], index: KeyIndex, rows: Int[np.ndarray, " N"]) -> Float[np.ndarray, "Q N"]:
    """Returns the BM25 score (Lucene's form, k1 = 1.5, b = 0.75) of those keys for every query."""
    searchers: OrderedDict[bytes, Any] = index.once("bm25 searchers", OrderedDict)
    key = rows.tobytes()
    if key not in searchers:
        words = index.once("bm25 words", lambda: _tokenize(index.texts))
        searchers[key] = _make_searcher([words[row] for row in rows])
    searchers.move_to_end(key)
    if len(searchers) > MAX_KEPT_INDEXES:
        searchers.popitem(last=False)
    scores = np.zeros((len(queries), len(rows)), np.float32)
    for row, query in enumerate(_tokenize(queries)):
        if query and searchers[key] is not None:
            scores[row] = searchers[key].get_scores(query)
    return scores


def _tokenize(texts: Sequence[str]) -> list[list[str]]:
    """Returns the words of every text; equal words are one object."""
    import bm25s  # imports scipy

    found: Any = bm25s.tokenize(
        list(texts), token_pattern=WORD_PATTERN, stopwords=[], return_ids=False, show_progress=False
    )
    known: dict[str, str] = {}
    return [[known.setdefault(word, word) for word in words] for words in found]


def _make_searcher(key_words: Sequence[Sequence[str]]) -> Any:
    """Returns what scores keys; None if they have no words, as their mean length would be 0."""
    import bm25s

    if not any(key_words):
        return None
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs every index otherwise
    searcher = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
    searcher.index(key_words, show_progress=False)
    return searcher
