"""Layers: what both stacks of the T5 are built from.

Norm without mean or bias, unscaled attention, relative positions in buckets and float32 softmax are those of
Raffel et al. (2020) and its T5 1.1 release; parameter names are T5X's.
"""

# pyright: reportUninitializedInstanceVariable=false
# A module of Flax makes its parts in `setup`, which takes the place of `__init__`.

from collections.abc import Callable, Mapping
from functools import partial, reduce
from operator import mul
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Bool, Float, Int, UInt32

from elm_jax.axes import Array, Seeds
from elm_jax.models import expert_layers as ex
from elm_jax.models import products, sharding
from elm_jax.models.sizes import T5Config
from elm_jax.records import Params

MASKED = -1e10  # finite, so that a row of padding alone gives no NaN
# [N, K, H, P] each: P is the width of a head, N whatever attends apart, rows or rows and their answers.
KeysValues = tuple[Float[Array, "_ _ H P"], Float[Array, "_ _ H P"]]
# [N, H, Q, K] each, or 1 where all are alike: added to the logits of attention, in float32. They stay apart
# until then: masks differ by row and relative positions by head, and their sum, an array of rows x heads,
# would be kept in memory for all layers.
Biases = tuple[Float[Array, "_ _ _ _"], ...]
_ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=True),
    "linear": lambda x: x,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def mask_bias(seen: Bool[Array, "..."]) -> Float[Array, "..."]:
    """Returns the bias that hides what is not seen."""
    return jnp.where(seen, 0.0, MASKED)


def _fan_in(distribution: Literal["normal", "truncated_normal"], scale: float = 1.0) -> Callable[..., Array]:
    return nn.initializers.variance_scaling(scale, "fan_in", distribution)


def relative_bucket(
    relative: Int[np.ndarray, "*places"], *, bidirectional: bool, buckets: int, max_distance: int
) -> Int[np.ndarray, "*places"]:
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
    """A bias for every head and distance, shared by all layers of a stack.

    At [h, i] stands the bias of head h where key position minus query position is i, or i - 2 length.
    """

    config: T5Config
    bidirectional: bool

    @nn.compact
    def __call__(self, length: int) -> Float[Array, "H _"]:
        shape = (self.config.num_heads, self.config.relpos_buckets)
        initial = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        table = self.param("rel_embedding", initial, shape)
        buckets = relative_bucket(
            np.concatenate([np.arange(length, dtype=np.int32), np.arange(-length, 0, dtype=np.int32)]),
            bidirectional=self.bidirectional,
            buckets=self.config.relpos_buckets,
            max_distance=self.config.relpos_max_distance,
        )
        return jnp.take(table, buckets, axis=1).astype(jnp.float32)


def position_bias(by_distance: Float[Array, "H _"]) -> Float[Array, "1 H Q Q"]:
    """Returns the bias of every query and key position, from `RelativePositions`."""
    heads, twice = by_distance.shape
    length = twice // 2
    # Every row is the one above, one place to the right: the rows of length 2 Q of one long row, cut again
    # into rows one shorter. A gather gives the same, and costs a scatter in the backward pass.
    rows = jnp.broadcast_to(by_distance[:, None], (heads, length, twice)).reshape(heads, -1)
    return rows[:, :-length].reshape(1, heads, length, twice - 1)[..., :length]


def tree_position_bias(
    by_distance: Float[Array, "H _"], depths: Int[Array, "B N"] | None
) -> Float[Array, "_ H N N"]:
    """Returns the bias of tokens whose positions are their depths in a tree, or one after the other."""
    if depths is None:
        return position_bias(by_distance)
    distance = (depths[:, None, :] - depths[:, :, None]) % by_distance.shape[1]
    return jnp.moveaxis(by_distance[:, distance], 0, 1)


def step_position_bias(by_distance: Float[Array, "H _"], position: Int[Array, ""]) -> Float[Array, "1 H 1 K"]:
    """Returns the bias of one query position and every key position, from `RelativePositions`."""
    return jnp.roll(by_distance, position, axis=1)[None, :, None, : by_distance.shape[1] // 2]


# What a layer keeps for its gradient: the results of its large products. What is cheap is computed again:
# norms and activations would keep several arrays for each one that the products around them need, and
# attention its weights before and after dropout, the largest arrays of all.
SAVED = "saved"


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
        return (wide * ex.broadcast_to_tokens(scale, wide)).astype(self.config.dtype)


class Dense(nn.Module):
    """A matrix product without bias; what enters it can be had as an intermediate of Flax's, `input`."""

    features: int
    dtype: str
    initial: Callable[..., Array] = _fan_in("truncated_normal")

    @nn.compact
    def __call__(self, x: Array, expert: Params | None = None) -> Array:
        kernel = self.param("kernel", self.initial, (x.shape[-1], self.features))
        self.sow("intermediates", "input", x)  # nothing, unless it is asked for
        x = ex.scale_inputs(x.astype(self.dtype), expert)
        return checkpoint_name(ex.apply_delta(x, sharding.multiply(x, kernel, str(self.name)), expert), SAVED)


class TokenSeeds(NamedTuple):
    """Tokens as dropout tells them apart: a word for each, and its position in its segment."""

    word: UInt32[Array, "B N"]
    position: UInt32[Array, "B N"]


def make_token_seeds(
    seeds: Seeds | None, segments: Int[Array, "B N"] | None, length: int
) -> TokenSeeds | None:
    """Returns what tells the tokens of rows apart: a seed for every row, or for every segment of it.

    A token's word depends on its seed and its position in its segment, not on where in a row that lies.
    """
    if seeds is None:
        return None
    seeds = jnp.asarray(seeds, jnp.uint32)
    position = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (seeds.shape[0], length))
    if segments is not None:
        segments = jnp.asarray(segments)
        begins = jnp.diff(segments, axis=1, prepend=-1) != 0
        position = position - jax.lax.cummax(jnp.where(begins, position, 0), axis=1)
    if seeds.ndim == 2:
        seeds = jnp.take_along_axis(seeds, jnp.maximum(jnp.asarray(segments) - 1, 0), axis=1)
    else:
        seeds = seeds[:, None]
    position = position.astype(jnp.uint32)
    return TokenSeeds(_hash(_hash(seeds) + position * np.uint32(0xC2B2AE35)), position)


class Dropout(nn.Module):
    """Dropout whose mask at a place depends on the layer, the token and the place in it alone.

    So an expert trains the same beside any neighbours, however rows are packed and padded, as it does alone;
    Flax's mask is drawn for the whole padded array. Bits come from an integer hash: JAX's generator takes a
    third of a training step on a CPU.
    """

    rate: float
    train: bool

    def __call__(self, x: Array, tokens: TokenSeeds | None = None, keys: TokenSeeds | None = None) -> Array:
        """Takes states [B, …, N, W], or weights [B, H, N, K] with the `keys` that they weigh.

        Without tokens a place is told by its row's number and its position.
        """
        return self.of(tokens, keys)(x)

    def of(
        self, tokens: TokenSeeds | None = None, keys: TokenSeeds | None = None
    ) -> Callable[[Array], Array]:
        """Returns the dropout of those tokens as a plain function, which may be computed again."""
        if not self.train or self.rate == 0.0:
            return lambda x: x
        return partial(self._drop, jax.random.key_data(self.make_rng("dropout")), tokens, keys)

    def _drop(self, words: Array, tokens: TokenSeeds | None, keys: TokenSeeds | None, x: Array) -> Array:
        *leading, length, width = x.shape
        if tokens is None:
            tokens = make_token_seeds(np.arange(leading[0], dtype=np.uint32), None, length)
        assert tokens is not None
        inside = int(np.prod(leading, dtype=np.int64)) // tokens.word.shape[0]  # answers of a row, heads
        parts = (np.arange(inside, dtype=np.uint32) * np.uint32(0x85EBCA6B))[None, :, None]
        of_token = _hash(tokens.word ^ words[0])[:, None] + words[1]
        of_place = _hash(of_token + parts).reshape(*leading, length, 1)
        if keys is None:
            column = np.arange(width, dtype=np.uint32).reshape((1,) * (x.ndim - 1) + (width,))
        else:
            column = keys.position[:, None, None]
        bits = _hash(of_place + column * np.uint32(0x9E3779B9))
        kept = bits >= np.uint32(min(self.rate * 2**32, 2**32 - 1))
        return jnp.where(kept, x / (1.0 - self.rate), 0.0).astype(x.dtype)


def _hash(x: UInt32[Array, "*places"]) -> UInt32[Array, "*places"]:
    """Mixes the bits of every word: two multiplications between three shifts."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


class Attention(nn.Module):
    """Multi-head attention without 1/sqrt(d), which T5 folds into its initial query weights.

    Any axes may stand between rows and positions: each of their entries sees itself alone where keys have
    them too, and all of them look at the same keys where keys do not.
    """

    config: T5Config
    train: bool = False

    def setup(self) -> None:
        config = self.config
        width = config.num_heads * config.head_dim
        normal = _fan_in("normal")
        self.query = Dense(width, config.dtype, _fan_in("normal", 1.0 / config.head_dim))
        self.key = Dense(width, config.dtype, normal)
        self.value = Dense(width, config.dtype, normal)
        self.out = Dense(config.emb_dim, config.dtype, normal)
        self.drop = Dropout(config.dropout_rate, self.train)

    def keys_values(self, x: Float[Array, "B *between K D"], expert: Params | None) -> KeysValues:
        """Returns keys and values of [N, K, H, P], where N counts rows and what is between."""
        shape = (-1, x.shape[-2], self.config.num_heads, self.config.head_dim)
        keys = self.key(x, ex.get_child(expert, "key")).reshape(shape)
        return keys, self.value(x, ex.get_child(expert, "value")).reshape(shape)

    def __call__(
        self,
        x: Float[Array, "B *between Q D"],
        keys_values: KeysValues,
        biases: Biases,
        expert: Params | None = None,
        tokens: TokenSeeds | None = None,
        keys_of: TokenSeeds | None = None,
    ) -> Float[Array, "B *between Q D"]:
        keys, values = keys_values
        query = self.query(x, ex.get_child(expert, "query")).reshape(keys.shape[0], -1, *keys.shape[2:])
        drop = self.drop.of(tokens, keys_of)

        rows = products.repeat_single_row(query)
        logits = jnp.einsum("nqhd,nkhd->nhqk", rows, keys).astype(jnp.float32)
        weights = jax.nn.softmax(sum(biases, logits), axis=-1).astype(self.config.dtype)
        mixed = jnp.einsum("nhqk,nkhd->nqhd", drop(weights), values)[:, : query.shape[1]]
        mixed = checkpoint_name(mixed, SAVED)
        return self.out(mixed.reshape(*x.shape[:-1], -1), ex.get_child(expert, "out"))


class FeedForward(nn.Module):
    """`wo` of the product of the activations, each of a projection of its own.

    T5 1.0 has a single one, `wo(relu(wi x))`; T5 1.1 and all after it two, `wo(gelu(wi_0 x) * wi_1 x)`.
    """

    config: T5Config
    train: bool = False

    @nn.compact
    def __call__(self, x: Array, expert: Params | None = None, tokens: TokenSeeds | None = None) -> Array:
        config = self.config

        def dense(name: str, features: int, x: Array) -> Array:
            return Dense(features, config.dtype, name=name)(x, ex.get_child(expert, name))

        activations = [_ACTIVATIONS[name] for name in config.mlp_activations]
        names = ["wi"] if len(activations) == 1 else [f"wi_{number}" for number in range(len(activations))]

        parts = (dense(name, config.mlp_dim, x) for name in names)
        hidden = reduce(mul, (activation(x) for activation, x in zip(activations, parts, strict=True)))
        return dense("wo", config.emb_dim, Dropout(config.dropout_rate, self.train)(hidden, tokens))
