"""The loss: cross-entropy of the answer's tokens, with T5X's and T-Few's terms as options.

T5X has a z-loss and label smoothing. T-Few (Liu et al. 2022, arXiv 2205.05638) has two terms of the answer
choices: tokens of wrong ones are to be unlikely, and the right one the likeliest for its length.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Num

from elm_jax.axes import PAD, Array, Targets
from elm_jax.training.config import LossConfig

PLAIN_LOSS = LossConfig()
UNLIKELIHOOD_FLOOR = 0.01  # T-Few's, added to 1 - p before its logarithm
ABSENT_CHOICE_LOGIT = -1e10  # logit of a choice that a row does not have


def token_losses(
    logits: Float[Array, "B T V"], targets: Targets, config: LossConfig = PLAIN_LOSS
) -> Float[Array, "B T"]:
    """Returns the loss of every real target token, in nats; 0 on padding.

    Args:
        logits: of the targets.
        targets: tokens.
        config: what is added to the cross-entropy. Default: nothing.
    """
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    # Picked by comparing, for a gather from logits that `tensor` splits ends XLA's partitioner.
    token = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    is_target = token == jnp.asarray(targets, jnp.int32)[..., None]
    loss = normaliser - jnp.where(is_target, logits, 0.0).sum(axis=-1)
    if config.label_smoothing:
        loss = _smooth_labels(loss, normaliser, logits, config.label_smoothing)
    if config.z_loss:
        loss = loss + config.z_loss * normaliser**2
    return jnp.where(targets != PAD, loss, 0.0)


def unlikelihood_losses(
    logp: Float[Array, "*places"], is_wrong: Bool[Array, "*places"]
) -> Float[Array, "*places"]:
    """Returns -log(1 - p + 0.01) for every token, where p is 0 unless the token is one of a wrong choice.

    As in T-Few's code all other places, padding too, then have -log 1.01; they have no gradient, and who adds
    losses up may leave them out.

    Args:
        logp: log-probabilities of tokens.
        is_wrong: whether they are tokens of wrong choices.
    """
    return -jnp.log(1 - jnp.where(is_wrong, jnp.exp(logp), 0.0) + UNLIKELIHOOD_FLOOR)


def choice_losses(
    logp: Float[Array, "*rows C"], lengths: Num[Array, "*rows C"], length_norm: float = 1.0
) -> Float[Array, "*rows"]:
    """Returns the cross-entropy of each row's first choice among all of them.

    Args:
        logp: log-probabilities of whole choices.
        lengths: their tokens, end-of-sequence included; 0 for a choice that is absent.
        length_norm: power of the length that a log-probability is divided by.
    """
    real = jnp.asarray(lengths) > 0
    by_length = logp / jnp.where(real, lengths, 1).astype(jnp.float32) ** length_norm
    return -jax.nn.log_softmax(jnp.where(real, by_length, ABSENT_CHOICE_LOGIT), axis=-1)[..., 0]


def _smooth_labels(
    loss: Float[Array, "B T"], normaliser: Float[Array, "B T"], logits: Float[Array, "B T V"], share: float
) -> Array:
    """Returns the loss against targets that leave `share` of their mass to all other tokens evenly.

    The entropy of such a target, the least that this can be, is subtracted, so that 0 stays the least loss.
    """
    others = logits.shape[-1] - 1
    each = share / others
    of_all = (others + 1) * normaliser - logits.sum(axis=-1)
    entropy = -((1 - share) * math.log(1 - share) + share * math.log(each)) if share < 1 else math.log(others)
    return (1 - share) * loss + each * (of_all - loss) - entropy
