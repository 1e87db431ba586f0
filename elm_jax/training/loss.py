"""The loss: cross-entropy of the answer's tokens, with T5X's z-loss and label smoothing as options."""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from elm_jax.axes import PAD, Array, Targets


def token_losses(
    logits: Float[Array, "B T V"],
    targets: Targets,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> Float[Array, "B T"]:
    """Returns the loss of every real target token, in nats; 0 on padding.

    `z_loss` weighs log(Z)², which keeps the softmax's normaliser Z near 1 (T5X trains with 1e-4).
    `label_smoothing` moves that share of the target's mass evenly onto all tokens.
    """
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    # Picked by comparing, for a gather from logits that `tensor` splits ends XLA's partitioner.
    token = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    here = token == jnp.asarray(targets, jnp.int32)[..., None]
    chosen = jnp.where(here, logits, 0.0).sum(axis=-1)
    loss = normaliser - chosen
    if label_smoothing:
        even = normaliser - logits.mean(axis=-1)
        loss = (1 - label_smoothing) * loss + label_smoothing * even
    if z_loss:
        loss = loss + z_loss * normaliser**2
    return jnp.where(targets != PAD, loss, 0.0)


def answer_loss(logits: Float[Array, "B T V"], targets: Targets, **options: float) -> Float[Array, ""]:
    """Returns the mean over all real target tokens of a batch; 0 where there are none."""
    return token_losses(logits, targets, **options).sum() / jnp.maximum((targets != PAD).sum(), 1)
