"""Layers: what both stacks of the T5 are built from.

Norm without mean or bias, unscaled attention, relative positions in buckets and float32 softmax are those of
Raffel et al. (2020) and its T5 1.1 release; parameter names are T5X's.
"""

# pyright: reportUninitializedInstanceVariable=false
# A module of Flax makes its parts in `setup`, which takes the place of `__init__`.

from collections.abc import Callable, Mapping
from functools import partial, reduce
from operator import mul
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from elm_jax.aot.program import traced_platform
from elm_jax.axes import Array
from elm_jax.models import attention_kernel, products, sharding
from elm_jax.models import expert_layers as ex
from elm_jax.models.dropout import AttentionDropoutSeeds, Dropout, TokenSeeds, drop
from elm_jax.models.masks import Mask, SegmentMask, mask_bias
from elm_jax.models.sizes import T5Config
from elm_jax.records import Params

# [N, K, W] each: W is the width of all heads side by side, N whatever attends apart, rows or rows and their
# answers.
KeysValues = tuple[Float[Array, "_ _ W"], Float[Array, "_ _ W"]]


class FusedAttentionBias(NamedTuple):
    """What the attention kernel takes for biases.

    Attributes:
        positions: the bias of every head; keys stand before queries.
        mask: which keys are seen.
    """

    positions: Float[Array, "H K Q"] | None
    mask: SegmentMask


# Arrays of [N, H, Q, K] each, or 1 where all are alike: added to the logits of attention, in float32. They
# stay apart until then: masks differ by row and relative positions by head, and their sum, an array of
# rows x heads, would be kept in memory for all layers.
Biases = FusedAttentionBias | tuple[Float[Array, "_ _ _ _"], ...]
_ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=True),
    "linear": lambda x: x,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


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


def mask_biases(config: T5Config, mask: Mask, queries: int, keys: int) -> Biases:
    """Returns the biases of attention with a mask, for the kernel where the traced platform has it."""
    if isinstance(mask, SegmentMask):
        if attention_kernel.should_use_kernel(queries, keys, config.num_heads, config.head_dim):
            return FusedAttentionBias(None, mask)
        mask = mask.to_bool(queries, keys)
    return (mask_bias(jnp.asarray(mask))[:, None],)


def add_positions(biases: Biases, positions: Float[Array, "_ H Q K"]) -> Biases:
    """Returns biases with one of positions, which comes before that of the mask."""
    if isinstance(biases, FusedAttentionBias):
        return biases._replace(positions=positions[0].swapaxes(1, 2))
    return (positions, *biases)


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
        normed = (wide * ex.broadcast_to_tokens(scale, wide)).astype(self.config.dtype)
        # The state of one token is soon written, and every product after it would compute it again.
        return products.materialize(normed) if x.shape[-2] == 1 else normed


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
        return products.keep(ex.apply_delta(x, sharding.multiply(x, kernel, str(self.name)), expert))


class OneQuery(NamedTuple):
    """What attention of one query of every row takes; `bias` has 1 for rows or heads that are alike."""

    query: Float[Array, "N 1 W"]
    key: Float[Array, "N K W"]
    value: Float[Array, "N K W"]
    bias: Float[Array, "_ _ K"]


def attend_with_one_query(head_dim: int, given: OneQuery) -> Float[Array, "N W"]:
    """Returns what a query reads of the values, in products over all heads at once: for TPUs.

    A product of one query of each head is vector instructions there, and wants heads before keys: the cache
    would be transposed at every token. So heads are rows of a matrix that is zero but for their own places,
    and keys and values are read as they lie.
    """
    width = given.query.shape[2]
    shape = (width // head_dim, width)
    head, place = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
    own = (place // head_dim == head)[None]
    logits = jnp.einsum("nhw,nkw->nhk", jnp.where(own, given.query, 0), given.key).astype(jnp.float32)
    weights = jax.nn.softmax(given.bias + logits, axis=-1).astype(given.value.dtype)
    mixed = jnp.einsum("nhk,nkw->nhw", weights, given.value)
    return jnp.where(own, mixed, 0).sum(axis=1)


def attend_by_kernel(
    head_dim: int, causal: bool, rate: float, given: attention_kernel.Arguments
) -> Float[Array, "N Q W"]:
    """Returns `attention_kernel.attend`, on a mesh of each device's rows and heads."""
    rows, _, width = given.query.shape
    units = {"batch": rows, "heads": attention_kernel.count_blocks(width // head_dim, head_dim)}
    run = partial(attention_kernel.attend, head_dim, causal, rate)
    axes = attention_kernel.AXES
    return sharding.shard_map_by_axes(run, given, axes, axes.query, units)


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
        """Returns keys and values of [N, K, W], where N counts rows and what is between."""
        shape = (-1, x.shape[-2], self.config.num_heads * self.config.head_dim)
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
        keys, _ = keys_values
        rows, count, width = keys.shape
        query = self.query(x, ex.get_child(expert, "query")).reshape(rows, -1, width)
        shape = (rows, self.config.num_heads, query.shape[1], count)
        words = self.drop.attention_dropout_seeds(shape, tokens, keys_of)
        if isinstance(biases, FusedAttentionBias):
            mixed = self._mix_by_kernel(shape, query, keys_values, biases, words)
        elif query.shape[1] == 1 and words is None and traced_platform() == "tpu":
            mixed = self._mix_one_query(query, keys_values, biases)
        else:
            mixed = self._mix(query, keys_values, biases, words)
        return self.out(mixed.reshape(*x.shape[:-1], -1), ex.get_child(expert, "out"))

    def _mix(
        self,
        query: Float[Array, "N Q W"],
        keys_values: KeysValues,
        biases: tuple[Float[Array, "_ _ _ _"], ...],
        words: AttentionDropoutSeeds | None,
    ) -> Float[Array, "N Q H P"]:
        states = query, *keys_values
        if (
            not self.train
        ):  # Else a TPU would make each in the order of the products here, which takes longer.
            states = tuple(map(products.materialize, states))
        query, keys, values = (
            x.reshape(*x.shape[:2], self.config.num_heads, self.config.head_dim) for x in states
        )
        logits = jnp.einsum("nqhd,nkhd->nhqk", query, keys).astype(jnp.float32)
        weights = jax.nn.softmax(sum(biases, logits), axis=-1).astype(self.config.dtype)
        if words is not None:
            own = words.query[..., None] + words.key[:, None, None]
            weights = drop(weights, own, self.config.dropout_rate)
        return products.keep(jnp.einsum("nhqk,nkhd->nqhd", weights, values))

    def _mix_one_query(
        self,
        query: Float[Array, "N 1 W"],
        keys_values: KeysValues,
        biases: tuple[Float[Array, "_ _ _ _"], ...],
    ) -> Float[Array, "N W"]:
        rows, heads = query.shape[0], self.config.num_heads
        bias = sum((each[:, :, 0] for each in biases[1:]), biases[0][:, :, 0])
        given = OneQuery(query, *keys_values, bias)
        states = ("batch", None, "heads")
        of_bias = (
            "batch" if bias.shape[0] == rows else None,
            "heads" if bias.shape[1] == heads else None,
            None,
        )
        axes: Any = OneQuery._make((states, states, states, of_bias))
        units = {"batch": rows, "heads": heads}
        run = partial(attend_with_one_query, self.config.head_dim)
        return sharding.shard_map_by_axes(run, given, axes, ("batch", "heads"), units)

    def _mix_by_kernel(
        self,
        shape: tuple[int, int, int, int],
        query: Float[Array, "N Q W"],
        keys_values: KeysValues,
        biases: FusedAttentionBias,
        words: AttentionDropoutSeeds | None,
    ) -> Float[Array, "N Q W"]:
        rows, _, queries, keys = shape
        segments = biases.mask.to_segments(rows, queries, keys)
        of_keys = None if words is None else jnp.broadcast_to(words.key, (rows, keys))
        own = attention_kernel.Arguments._make(
            (
                *(query, *keys_values),
                *segments,
                biases.positions,
                None if words is None else words.query,
                of_keys,
            )
        )
        rate = 0.0 if words is None else self.config.dropout_rate
        return attend_by_kernel(self.config.head_dim, biases.mask.causal, rate, own)


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
        if not self.train:
            hidden = products.materialize(hidden)
        return dense("wo", config.emb_dim, Dropout(config.dropout_rate, self.train)(hidden, tokens))
