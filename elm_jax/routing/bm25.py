"""BM25: every query votes for the expert whose key shares its rarest words (Robertson and Zaragoza, 2009).

Needs no embedder. The released code of Retrieval of Experts (arXiv 2302.03202) names it as an option whose
index cannot be built; here it works row by row, like RoE.
"""

import logging
from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Float

from elm_jax.errors import UserError
from elm_jax.records import Selection
from elm_jax.routing import evidence, vote
from elm_jax.routing.evidence import Index, Queries

# Single letters and digits count, unlike in the customary pattern: answer choices are often called A or 1.
WORD = r"(?u)\b\w+\b"


def bm25(
    queries: Queries,
    index: Index,
    *,
    k: int = 1,
    experts: int = 1,
    weighting: str = "uniform",
    exclude: Collection[str] = (),
) -> Selection:
    """Returns the experts with most votes among the `k` keys of highest BM25 for every query.

    A key that shares no word with a query is not near it and casts no vote, so a query of unknown words has
    none. Equal scores are ordered by row. Word statistics are those of the keys that may be chosen. The other
    options are RoE's.

    Raises a UserError if texts are missing or of another format, if no query shares a word with any key, or
    if an option makes no sense.
    """
    texts = evidence.texts_of(queries, index)
    rows = np.flatnonzero(evidence.rows_of(index, evidence.candidates(index, exclude)))
    if not 1 <= k <= len(index.texts):
        raise UserError(
            f"The number of nearest keys should lie between 1 and the {len(index.texts)} that the index has, "
            f"but {k} came."
        )
    scores = _scores(texts, [index.texts[row] for row in rows])
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, axis=1)
    voters = np.where(best > 0.0, index.expert_of_row[rows[order]], -1)
    return vote.elect("bm25", queries, index, voters, best, experts=experts, weighting=weighting)


def _scores(queries: Sequence[str], keys: Sequence[str]) -> Float[np.ndarray, "Q N"]:
    """Returns the BM25 score (Lucene's form, k1 = 1.5, b = 0.75) of every key for every query."""
    import bm25s  # imports scipy

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to tell of every index

    def words(texts: Sequence[str]) -> list[list[str]]:
        return bm25s.tokenize(
            list(texts), token_pattern=WORD, stopwords=[], return_ids=False, show_progress=False
        )  # pyright: ignore[reportReturnType]

    key_words = words(keys)
    scores = np.zeros((len(queries), len(keys)), np.float32)
    if not any(key_words):  # the mean length would be 0 and the score undefined
        return scores
    searcher = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
    searcher.index(key_words, show_progress=False)
    for row, query in enumerate(words(queries)):
        if query:
            scores[row] = searcher.get_scores(query)
    return scores
