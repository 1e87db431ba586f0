"""The loss: cross-entropy of the answer's tokens, with T5X's z-loss and label smoothing as options."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Float

from elm_jax.axes import PAD, Array, Targets
from elm_jax.training.config import LossConfig

PLAIN = LossConfig()


def token_losses(
    logits: Float[Array, "B T V"], targets: Targets, config: LossConfig = PLAIN
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
