"""The loss: cross-entropy of the answer's tokens, with T5X's z-loss and label smoothing as options."""

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
        even = normaliser - logits.mean(axis=-1)
        loss = (1 - config.label_smoothing) * loss + config.label_smoothing * even
    if config.z_loss:
        loss = loss + config.z_loss * normaliser**2
    return jnp.where(targets != PAD, loss, 0.0)
