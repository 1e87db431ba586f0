"""Rank classification: from token log-probabilities to the score of every choice, and to the choice made.

A choice's score is the sum of the log-probabilities of its tokens, end-of-sequence included, without length
normalisation; the prediction is the best choice, the first of equals (T0, Sanh et al. 2022; method of arXiv
2302.03202).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int

from elm_jax.axes import Array, ChoiceMask, ChoiceScores, TokenLogProbs


def score_choices(
    token_logp: TokenLogProbs,
    token_mask: Bool[Array, "B C T"],
    choice_mask: ChoiceMask,
    *,
    per_token: bool = False,
) -> ChoiceScores:
    """Returns the score of every choice in nats; choices that only fill the batch get -inf.

    `per_token` takes the mean over a choice's tokens instead of the sum, so that a long answer does not lose
    for its length alone.

    >>> logp = jnp.array([[[-1.0, 0.0, 0.0], [-0.5, -0.5, -0.5]]])
    >>> mask = jnp.array([[[True, False, False], [True, True, True]]])
    >>> score_choices(logp, mask, jnp.ones((1, 2), bool)).tolist()
    [[-1.0, -1.5]]
    """
    score = jnp.where(token_mask, token_logp, 0.0).sum(axis=-1)
    if per_token:
        score = score / jnp.maximum(token_mask.sum(axis=-1), 1)
    return jnp.where(choice_mask, score, -jnp.inf)


def predict(scores: ChoiceScores) -> Int[Array, " B"]:
    """Returns the best choice of every row, the first of equals."""
    return jnp.asarray(scores).argmax(axis=-1).astype(jnp.int32)


def token_log_probs(logits: Array, tokens: Array) -> jax.Array:
    """Returns log p of each token [..., T] under float32 logits [..., T, V]."""
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)
