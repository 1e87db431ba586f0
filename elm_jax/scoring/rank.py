"""Rank classification: from log-probabilities of tokens to the score of every choice, and to the choice made.

A choice's score is the sum of the log-probabilities of its tokens, end-of-sequence included, without length
normalisation; the prediction is the best choice, the first of equals (T0, Sanh et al. 2022; method of arXiv
2302.03202). Two other scores are had by name: the mean over its tokens, so that a long answer does not lose
for its length alone, and the sum less the sum without the prompt, so that a likely answer does not win for
that alone (Holtzman et al. 2021).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from elm_jax import names

NORMALIZATIONS = ("sum", "mean", "calibrated")


def answer_scores(
    edge_logp: Float[np.ndarray, "B M"], paths: Int[np.ndarray, "B C T"]
) -> Float[np.ndarray, "B C"]:
    """Returns the sum over the edges of every answer in nats, from those of its trie (`scoring.tries`).

    An entry M of a path is none; sums are made in float64, in the order of the tokens.
    """
    padded = np.pad(edge_logp.astype(np.float64), ((0, 0), (0, 1)))
    flat = np.take_along_axis(padded, paths.reshape(len(paths), -1), axis=1)
    return flat.reshape(paths.shape).sum(axis=-1).astype(np.float32)


def answers_are_greedy(
    likeliest: Bool[np.ndarray, "B M"], paths: Int[np.ndarray, "B C T"]
) -> Bool[np.ndarray, "B C"]:
    """Says of every answer whether greedy decoding would write it, as far as it goes: all its edges are."""
    padded = np.pad(likeliest, ((0, 0), (0, 1)), constant_values=True)
    flat = np.take_along_axis(padded, paths.reshape(len(paths), -1), axis=1)
    return np.asarray(flat.reshape(paths.shape).all(axis=-1))


def normalize_scores(
    score: str,
    sums: Float[np.ndarray, " C"],
    lengths: Sequence[int],
    without_prompt: Float[np.ndarray, " C"] | None = None,
) -> Float[np.ndarray, " C"]:
    """Returns a row's normalized scores, from the sums over its answers' tokens.

    Args:
        score: one of `NORMALIZATIONS`.
        sums: of each answer, in nats, [C].
        lengths: how many tokens each answer has.
        without_prompt: the sums if the prompt is empty, [C]; "calibrated" needs them.

    >>> normalize_scores("mean", np.array([-1.0, -3.0]), [1, 4]).tolist()
    [-1.0, -0.75]
    """
    names.resolve(score, NORMALIZATIONS, kind="score", where="rank classification")
    if score == "mean":
        return sums / np.asarray(lengths, sums.dtype)
    if score == "calibrated":
        assert without_prompt is not None
        return sums - without_prompt
    return sums


def predict(scores: Float[np.ndarray, " C"]) -> int:
    """Returns the best choice of a row, the first of equals."""
    return int(np.argmax(scores))
