"""Attention tiles: what the attention kernel computes in one step of its grid, forward and backward.

Weights lie as [K, Q]: what is one number for a query, such as its sum or its word of dropout, is then a row
that all keys share, and four of five products of the backward pass push a block of 128 queries into the
multipliers once. A register is 128 lanes wide, so heads of 64 are taken two at a time: where the other head
would enter a product it is set to zero.
"""

from collections.abc import Iterator, Sequence
from functools import reduce
from operator import or_
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jaxtyping import Float, Int

from elm_jax.axes import Array
from elm_jax.models.dropout import is_kept
from elm_jax.models.masks import MASKED

LANES = 128
BITS = 32  # of a word
BIAS_BYTES = 2 << 20  # of a block of the bias; with its gradient and double buffers it is held four times


class Shape(NamedTuple):
    """What a kernel is made for.

    Attributes:
        rows: N.
        queries: Q.
        keys: K.
        heads: H.
        head_dim: P.
        causal: whether a query sees no key after it.
        rate: of dropout.
        biased: whether there is a bias.
    """

    rows: int
    queries: int
    keys: int
    heads: int
    head_dim: int
    causal: bool
    rate: float
    biased: bool

    @property
    def together(self) -> int:
        """Heads that fill a register."""
        return max(1, LANES // self.head_dim)

    @property
    def wide(self) -> int:
        """Width of the heads that are taken together."""
        return self.together * self.head_dim

    @property
    def block(self) -> int:
        """Queries of one step of the grid."""
        if self.queries <= LANES:
            return self.queries
        most = max(1, BIAS_BYTES // (4 * self.together * self.keys) // LANES)
        tiles = self.queries // LANES
        return LANES * max(count for count in range(1, tiles + 1) if not tiles % count and count <= most)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Steps: heads taken together, blocks of queries, rows."""
        return self.heads // self.together, self.queries // self.block, self.rows

    @property
    def words(self) -> int:
        """Rows of words that have a bit for every key."""
        return 8 * -(-self.keys // (8 * BITS))

    @property
    def tile(self) -> int:
        """Queries that are computed at once."""
        return min(self.queries, LANES)


class Refs(NamedTuple):
    """The blocks of one step of the grid; names are those of `attention_kernel.Arguments`."""

    query: Any
    key: Any
    value: Any
    query_segments: Any
    key_segments: Any
    bias: Any
    query_dropout_seeds: Any
    key_dropout_seeds: Any


def forward_kernel(shape: Shape, *refs: Any) -> None:
    """Writes what queries read of the values, the logarithms of the sums of weights, and what is kept."""
    given, (mixed, logsum, *kept, turned) = _split_refs(shape, refs, words=shape.rate > 0)
    columns = _columns(shape, given)
    turned[...] = given.value[0].T

    def tile(at: Any, first: Any) -> None:
        query = given.query[0, at]
        parts = []
        for head, own in _heads(shape):
            logits = _logits(shape, given, columns, head, at, first, _own_lanes(shape, query, head))
            most = logits.max(axis=0, keepdims=True)
            weights = jnp.exp(logits - most)
            total = weights.sum(axis=0, keepdims=True)
            # A query that sees nothing passes no gradient on: exp(MASKED - 0) is zero.
            logsum[0, 0, head : head + 1, at] = jnp.where(most > MASKED, most + jnp.log(total), 0.0)
            if shape.rate:
                words = columns[1] + given.query_dropout_seeds[0, 0, head : head + 1, at]
                is_own = is_kept(words, shape.rate)
                kept[0][0, 0, head, :, at] = _pack(is_own)
                weights = jnp.where(is_own, weights, 0.0)
            weights = weights.astype(turned.dtype)
            parts.append(_dot(turned[own], weights, (1, 0)) * (1.0 / (total * (1.0 - shape.rate))))
        mixed[0, at] = jnp.concatenate(parts, axis=0).T.astype(mixed.dtype)

    _each_tile(shape, tile)


def backward_kernel(shape: Shape, learn_bias: bool, *refs: Any) -> None:
    """Writes the gradients of queries, keys and values, and adds to that of the bias."""
    given, rest = _split_refs(shape, refs, words=False)
    mixed, logsum = rest.pop(0), rest.pop(0)
    kept = rest.pop(0) if shape.rate else None
    gradient, to_query, to_key, to_value, *rest = rest
    to_bias = rest.pop(0) if learn_bias else None
    key_sum, value_sum, turned = rest
    columns = _columns(shape, given)
    turned[...] = given.key[0].T
    key_sum[...] = jnp.zeros_like(key_sum)
    value_sum[...] = jnp.zeros_like(value_sum)

    if to_bias is not None:

        @pl.when(pl.program_id(2) == 0)
        def _() -> None:
            to_bias[...] = jnp.zeros_like(to_bias)

    def tile(at: Any, first: Any) -> None:
        query, key, value = given.query[0, at], given.key[0], given.value[0]
        wide = gradient[0, at].astype(jnp.float32)
        products = (wide * mixed[0, at].astype(jnp.float32)).T
        scaled = (wide * (1.0 / (1.0 - shape.rate))).astype(value.dtype)
        parts = []
        for head, own in _heads(shape):
            own_query, own_scaled = (_own_lanes(shape, x, head) for x in (query, scaled))
            logits = _logits(shape, given, columns, head, at, first, own_query)
            weights = jnp.exp(logits - logsum[0, 0, head : head + 1, at])
            to_weights = _dot(value, own_scaled, (1, 1))
            dropped = weights
            if kept is not None:
                is_own = _unpack(kept[0, 0, head, :, at], shape.keys)
                dropped, to_weights = (jnp.where(is_own, x, 0.0) for x in (weights, to_weights))
            to_logits = weights * (to_weights - products[own].sum(axis=0, keepdims=True))
            if to_bias is not None:
                to_bias[head, :, at] += to_logits
            to_logits, dropped = to_logits.astype(key.dtype), dropped.astype(value.dtype)
            key_sum[...] += _dot(to_logits, own_query, (1, 0))
            value_sum[...] += _dot(dropped, own_scaled, (1, 0))
            parts.append(_dot(turned[own], to_logits, (1, 0)))
        to_query[0, at] = jnp.concatenate(parts, axis=0).T.astype(to_query.dtype)

    _each_tile(shape, tile)
    to_key[0, 0] = key_sum[...].astype(to_key.dtype)
    to_value[0, 0] = value_sum[...].astype(to_value.dtype)


def _split_refs(shape: Shape, refs: Sequence[Any], *, words: bool) -> tuple[Refs, list[Any]]:
    """Returns the blocks of the arguments, with those that dropout draws from or without, and the others."""
    rest = list(refs)
    first = [rest.pop(0) for _ in range(5)]
    bias = rest.pop(0) if shape.biased else None
    of_dropout = [rest.pop(0) if words else None for _ in range(2)]
    return Refs._make((*first, bias, *of_dropout)), rest


def _each_tile(shape: Shape, tile: Any) -> None:
    """Calls a function with the place of every tile of a block, and the number of its first query."""
    begin = pl.program_id(1) * shape.block
    if shape.block == shape.tile:
        tile(slice(None), begin)
        return

    def body(number: Any, _: None) -> None:
        first = pl.multiple_of(number * shape.tile, shape.tile)
        tile(pl.ds(first, shape.tile), begin + first)

    jax.lax.fori_loop(0, shape.block // shape.tile, body, None)


def _heads(shape: Shape) -> Iterator[tuple[int, slice]]:
    """Yields the heads of a block and where in its width they lie."""
    for head in range(shape.together):
        yield head, slice(head * shape.head_dim, (head + 1) * shape.head_dim)


def _own_lanes(shape: Shape, x: Array, head: int) -> Array:
    """Returns x [Q, P] with zeros where other heads are."""
    if shape.together == 1:
        return x
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    own = (lane >= head * shape.head_dim) & (lane < (head + 1) * shape.head_dim)
    return jnp.where(own, x, jnp.zeros_like(x))


def _columns(shape: Shape, given: Refs) -> list[Any]:
    """Returns segments and words of the keys as columns, repeated for a tile of queries: [K, Q]."""
    rows = [given.key_segments, given.key_dropout_seeds]
    padded = -(-shape.keys // LANES) * LANES

    def column(row: Array) -> Array:
        row = jnp.pad(row, ((0, 0), (0, padded - shape.keys))) if padded > shape.keys else row
        return jnp.broadcast_to(row, (LANES, padded)).T[: shape.keys, : shape.tile]

    return [None if row is None else column(row[0]) for row in rows]


def _logits(
    shape: Shape, given: Refs, columns: list[Any], head: int, at: Any, first: Any, query: Array
) -> Float[Array, "K Q"]:
    logits = _dot(given.key[0], query, (1, 1))
    if given.bias is not None:
        logits = logits + given.bias[head, :, at]
    seen = columns[0] == given.query_segments[0, :, at]
    if shape.causal:
        key, own = (jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis) for axis in (0, 1))
        seen = seen & (key <= own + first)
    return jnp.where(seen, logits, MASKED)


def _pack(kept: Array) -> Int[Array, "_ Q"]:
    """Returns what is kept [K, Q] as the bits of words: bit j of a row of words is of the j-th eight keys."""
    flags, words = jnp.where(kept, 1, 0), []
    for first in range(0, flags.shape[0], 8 * BITS):
        parts = [flags[at : at + 8] for at in range(first, min(first + 8 * BITS, flags.shape[0]), 8)]
        words.append(reduce(or_, (part << bit for bit, part in enumerate(parts))))
    return jnp.concatenate(words, axis=0)


def _unpack(words: Int[Array, "_ Q"], keys: int) -> Array:
    """Returns what `_pack` was given for so many keys."""
    parts = [divmod(eight, BITS) for eight in range(keys // 8)]
    flags = [words[8 * row : 8 * row + 8] & np.uint32(1 << bit).astype(np.int32) for row, bit in parts]
    return jnp.concatenate(flags, axis=0) != 0


def _dot(left: Array, right: Array, axes: tuple[int, int]) -> Array:
    """Returns a product in float32, summed over an axis of each."""
    return jax.lax.dot_general(
        left,
        right,
        (((axes[0],), (axes[1],)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
