"""Layers: what both stacks of the T5 are built from.

Norm without mean or bias, unscaled attention, relative positions in buckets and float32 softmax are those of
Raffel et al. (2020) and its T5 1.1 release; parameter names are T5X's.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry2x32_p
from jaxtyping import Float, Int

from elm_jax.axes import Array
from elm_jax.models import experts as ex
from elm_jax.models.sizes import T5Config
from elm_jax.records import Params

LONGEST = 2**14  # rows may not be longer
MASKED = -1e10  # finite, so that a row of padding alone gives no NaN


def _fan_in(scale: float = 1.0) -> Callable[..., Array]:
    return nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal")


def relative_bucket(
    relative: Int[np.ndarray, "Q K"], *, bidirectional: bool, buckets: int, max_distance: int
) -> Int[np.ndarray, "Q K"]:
    """Returns the bucket of each (key position - query position): exact when near, logarithmic when far."""
    distance, offset = -relative, np.zeros_like(relative)
    if bidirectional:
        buckets //= 2
        offset = (distance < 0) * buckets
        distance = np.abs(distance)
    distance = np.maximum(distance, 0)
    exact = buckets // 2
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / np.log(max_distance / exact)
    far = np.minimum(exact + (ratio * (buckets - exact)).astype(np.int32), buckets - 1)
    return (offset + np.where(distance < exact, distance, far)).astype(np.int32)


class RelativePositions(nn.Module):
    """A bias for every head and distance, shared by all layers of a stack."""

    config: T5Config
    bidirectional: bool

    @nn.compact
    def __call__(self, length: int) -> Float[Array, "1 H Q K"]:
        shape = (self.config.num_heads, self.config.relpos_buckets)
        initial = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        table = self.param("rel_embedding", initial, shape)
        position = np.arange(length, dtype=np.int32)
        buckets = relative_bucket(
            position[None, :] - position[:, None],
            bidirectional=self.bidirectional,
            buckets=self.config.relpos_buckets,
            max_distance=self.config.relpos_max_distance,
        )
        return jnp.take(table, buckets, axis=1)[None].astype(jnp.float32)


class Norm(nn.Module):
    """Root-mean-square norm in float32; an expert's scale takes the place of the base's."""

    config: T5Config

    @nn.compact
    def __call__(self, x: Array, expert: Params | None) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        if expert is not None:
            scale = expert["scale"]
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.config.norm_epsilon)
        return (wide * ex.spread(scale.astype(jnp.float32), wide)).astype(self.config.dtype)


class Dense(nn.Module):
    """A matrix product without bias."""

    features: int
    dtype: str
    initial: Callable[..., Array] = _fan_in()

    @nn.compact
    def __call__(self, x: Array, expert: Params | None = None) -> Array:
        kernel = self.param("kernel", self.initial, (x.shape[-1], self.features))
        # One flat product: with batched ones a gradient takes 1.4 times as long on XLA's CPU backend.
        flat = x.astype(self.dtype).reshape(-1, x.shape[-1]) @ kernel.astype(self.dtype)
        return flat.reshape(*x.shape[:-1], self.features)


class Dropout(nn.Module):
    """Dropout whose mask at a place depends on the key and the place alone, not on how far rows are padded.

    So an expert trains the same beside neighbours with longer rows as it does alone; Flax's mask is drawn for
    the whole padded array.
    """

    rate: float
    train: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if not self.train or self.rate == 0.0:
            return x
        *leading, length, width = x.shape
        # The last axis counts one word, all others the second, with room for any length on the padded axis.
        row = np.arange(int(np.prod(leading, dtype=np.int64)), dtype=np.uint32) * np.uint32(LONGEST)
        place = (row[:, None] + np.arange(length, dtype=np.uint32)).reshape(*leading, length, 1)
        words = jax.random.key_data(self.make_rng("dropout"))[:2]
        column = np.arange(width, dtype=np.uint32).reshape((1,) * (x.ndim - 1) + (width,))
        bits = threefry2x32_p.bind(
            *(jnp.broadcast_to(part, x.shape) for part in (words[0], words[1], place, column))
        )[0]
        kept = bits >= np.uint32(min(self.rate * 2**32, 2**32 - 1))
        return jnp.where(kept, x / (1.0 - self.rate), 0.0).astype(x.dtype)


class Attention(nn.Module):
    """Multi-head attention without 1/sqrt(d), which T5 folds into its initial query weights."""

    config: T5Config
    train: bool = False

    @nn.compact
    def __call__(
        self,
        queries: Float[Array, "B Q D"],
        keys: Float[Array, "B K D"],
        bias: Float[Array, "#B #H #Q K"],
        expert: Params | None = None,
    ) -> Float[Array, "B Q D"]:
        config = self.config
        width = config.num_heads * config.head_dim

        def heads(name: str, x: Array, initial: Callable[..., Array]) -> Array:
            flat = Dense(width, config.dtype, initial, name=name)(x, ex.child(expert, name))
            return flat.reshape(*flat.shape[:-1], config.num_heads, config.head_dim)

        query = heads("query", queries, _fan_in(1.0 / config.head_dim))
        key = heads("key", keys, _fan_in())
        value = heads("value", keys, _fan_in())
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key).astype(jnp.float32)
        weights = jax.nn.softmax(logits + bias, axis=-1).astype(config.dtype)
        weights = Dropout(config.dropout_rate, self.train)(weights)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return Dense(config.emb_dim, config.dtype, name="out")(
            mixed.reshape(*mixed.shape[:2], width), ex.child(expert, "out")
        )


class FeedForward(nn.Module):
    """T5 1.1's gated feed-forward: `wo(gelu(wi_0 x) * wi_1 x)` with the tanh form of gelu."""

    config: T5Config
    train: bool = False

    @nn.compact
    def __call__(self, x: Array, expert: Params | None = None) -> Array:
        config = self.config

        def dense(name: str, features: int, x: Array) -> Array:
            return Dense(features, config.dtype, name=name)(x, ex.child(expert, name))

        hidden = jax.nn.gelu(dense("wi_0", config.mlp_dim, x), approximate=True)
        hidden = hidden * dense("wi_1", config.mlp_dim, x)
        return dense("wo", config.emb_dim, Dropout(config.dropout_rate, self.train)(hidden))
