"""Pooling: one vector of a text made of its tokens', and what may follow, projections and length 1.

These are the steps that sentence-transformers keeps in a model's directory beside the network.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from elm_jax.axes import Array, Embeddings, Encoded
from elm_jax.models.bert_encoder import ACTIVATIONS
from elm_jax.records import Params

POOLINGS = ("mean", "cls", "max")
PROJECTION_ACTIVATIONS: Mapping[str, Callable[[Array], jax.Array]] = {
    "identity": jnp.asarray,
    "tanh": jnp.tanh,
    "relu": ACTIVATIONS["relu"],
    "gelu": ACTIVATIONS["gelu"],
}
"""What may follow a projection."""


def pool(hidden: Encoded, lengths: Int[Array, " B"], pooling: str) -> Float[Array, "B D"]:
    """Returns the mean or the largest of each text's tokens, or the first one; padding has no part in it."""
    if pooling == "cls":
        return jnp.asarray(hidden)[:, 0]
    count = jnp.asarray(lengths)[:, None]
    real = (jnp.arange(hidden.shape[1])[None] < count)[..., None]
    if pooling == "max":
        return jnp.where(real, hidden, -jnp.inf).max(axis=1)
    return jnp.where(real, hidden, 0.0).sum(axis=1) / jnp.maximum(count, 1)


def project(vectors: Embeddings, params: Params, activation: str) -> Float[Array, "N _"]:
    """Returns the vectors times a matrix, with a bias if there is one, in float32."""
    made = jnp.matmul(vectors, params["kernel"], precision=jax.lax.Precision.HIGHEST)
    return PROJECTION_ACTIVATIONS[activation](made + params["bias"][None] if "bias" in params else made)


def normalize(vectors: Embeddings) -> Embeddings:
    """Returns the vectors with length 1; a vector of zeros stays one."""
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
