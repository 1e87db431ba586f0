"""Embedding: a vector for every text, the mean of a T5 encoder's output over its real tokens."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from elm_jax.axes import PAD, Prompts
from elm_jax.models.sizes import T5Config
from elm_jax.models.t5 import T5
from elm_jax.records import Params
from elm_jax.scoring.buckets import LADDER, rung
from elm_jax.tasks.prepared import pad


@lru_cache(maxsize=8)
def compiled(config: T5Config) -> Callable[[Params, Prompts], jax.Array]:
    """Returns the compiled embedding of a batch [B, S] -> [B, D]: masked mean, then length 1."""

    def embed(params: Params, tokens: Prompts) -> jax.Array:
        encoded = jnp.asarray(T5(config).apply({"params": params}, tokens, method="encode"), jnp.float32)
        real = (tokens != PAD)[..., None]
        mean = jnp.where(real, encoded, 0.0).sum(axis=1) / jnp.maximum(real.sum(axis=1), 1)
        return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)

    return jax.jit(embed)


def embed_rows(
    config: T5Config, params: Params, rows: Sequence[Sequence[int] | np.ndarray], *, batch_size: int = 64
) -> np.ndarray:
    """Returns float32 [N, D] of length 1 for tokenised texts, in their order; batched by length inside."""
    run = compiled(config)
    vectors = np.zeros((len(rows), config.emb_dim), np.float32)
    order = sorted(range(len(rows)), key=lambda position: len(rows[position]))
    for start in range(0, len(order), batch_size):
        members = order[start : start + batch_size]
        length = rung(len(rows[members[-1]]), LADDER, what="text length")
        tokens = np.zeros((batch_size, length), np.int32)
        tokens[: len(members)] = pad([np.asarray(rows[position]) for position in members], length)
        vectors[members] = np.asarray(run(params, tokens))[: len(members)]
    return vectors


def embedder_name(fingerprint: str) -> str:
    """Names the embedder that keys were made with: another base gives vectors of another space."""
    return f"t5-encoder-mean/{fingerprint}"
