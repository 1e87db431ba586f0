"""Rank classification: from log-probabilities of tokens to the score of every choice, and to the choice made.

A choice's score is the sum of the log-probabilities of its tokens, end-of-sequence included, without length
normalisation; the prediction is the best choice, the first of equals (T0, Sanh et al. 2022; method of arXiv
2302.03202). Other scores s' are had by name, of the sum s, so that an answer does not lose for its length
alone, or win because it is likely after any prompt:

    mean            s / tokens                            T-Few as configured (arXiv 2205.05638)
    length:A        s / tokens^A                          T-Few's length_norm
    characters      s / characters of the text            lm-evaluation-harness's acc_norm
    bytes           s / bytes of the text in UTF-8        its acc_bytes
    calibrated      s - s after end-of-sequence alone     its acc_mutual_info, with an empty context
    pmi:PREMISE     s - s after PREMISE                   Holtzman et al. 2021 (arXiv 2104.08315)
    contextual      log p(s) - log p(log mean exp s       Zhao et al. 2021 (arXiv 2102.09690) as released, p
                    after prompts without content)        the softmax over a row's choices, and b = 0

`pmi` is `calibrated` with other words. It was not run beside its authors' release: its formula holds it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from elm_jax import names
from elm_jax.errors import UserError

NORMALIZATIONS = ("sum", "mean", "length", "characters", "bytes", "calibrated", "pmi", "contextual")


class Normalization(NamedTuple):
    """How a choice's score is made of the sum over its tokens.

    Attributes:
        name: one of `NORMALIZATIONS`, but "length" for "mean" and "pmi" for "calibrated".
        exponent: of the number of tokens; "length" alone reads it.
        premise: stands in the place of the prompt; "pmi" alone reads it.
    """

    name: str
    exponent: float = 1.0
    premise: str = ""


def parse_normalization(text: str) -> Normalization:
    """Returns the normalization that a string stands for, as the table above has them.

    Raises:
        UserError: there is none of that name, or its value is none.

    >>> parse_normalization("length:0.5").exponent
    0.5
    """
    name, colon, value = text.partition(":")
    names.resolve(name, NORMALIZATIONS, kind="score", where="rank classification")
    if name == "pmi" and value:
        return Normalization("pmi", premise=value)
    if name == "length":
        try:
            exponent = float(value)
        except ValueError:
            exponent = np.nan
        if np.isfinite(exponent):
            return Normalization("length", exponent)
    elif not colon and name != "pmi":
        return Normalization({"mean": "length", "calibrated": "pmi"}.get(name, name))
    wanted = {"length": "length:NUMBER", "pmi": "pmi:PREMISE"}.get(name, name)
    raise UserError(f"Expected the score {wanted}, got {text!r}. Fix: give it in this form.")


def count_passes(normalization: str) -> int:
    """Returns how often at most answers are scored for a normalization, after prompts and after premises."""
    return {"pmi": 2, "contextual": 4}.get(parse_normalization(normalization).name, 1)


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
    normalization: Normalization,
    sums: Float[np.ndarray, " C"],
    lengths: Sequence[int],
    texts: Sequence[str],
    after_premises: Float[np.ndarray, "P C"] | None = None,
) -> Float[np.ndarray, " C"]:
    """Returns a row's normalized scores, from the sums over its answers' tokens.

    Args:
        normalization: which.
        sums: of each answer, in nats, [C].
        lengths: how many tokens each answer has, end-of-sequence included.
        texts: the answers; an empty one counts as one character.
        after_premises: the sums after each of P premises in the place of the prompt, [P, C]; "pmi" needs one,
            and "contextual" one or more.

    >>> normalize_scores(parse_normalization("mean"), np.array([-1.0, -3.0]), [1, 4], ["a", "b c"]).tolist()
    [-1.0, -0.75]
    """
    if normalization.name == "length":
        return sums / np.asarray(lengths, sums.dtype) ** normalization.exponent
    if normalization.name in ("characters", "bytes"):
        units = [text.encode() if normalization.name == "bytes" else text for text in texts]
        return sums / np.array([max(1, len(own)) for own in units], sums.dtype)
    if normalization.name == "sum":
        return sums
    assert after_premises is not None
    if normalization.name == "pmi":
        return sums - after_premises[0]
    # As released: probabilities are averaged over the prompts without content before they are normalized.
    content_free = choice_log_softmax(np.logaddexp.reduce(np.asarray(after_premises, np.float64), axis=0))
    return (choice_log_softmax(sums) - content_free).astype(sums.dtype)


def choice_log_softmax(scores: Float[np.ndarray, "*rows C"]) -> Float[np.ndarray, "*rows C"]:
    """Returns the logarithms of a softmax over choices, in float64."""
    wide = np.asarray(scores, np.float64)
    wide = wide - wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def predict(scores: Float[np.ndarray, " C"]) -> int:
    """Returns the best choice of a row, the first of equals."""
    return int(np.argmax(scores))
