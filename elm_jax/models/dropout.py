"""Dropout: masks that depend on the layer, the token and the place in it alone.

So an expert trains the same beside any neighbours, however rows are packed and padded, as it does alone;
Flax's mask is drawn for the whole padded array. Bits come from an integer hash: JAX's generator takes a third
of a training step on a CPU.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, UInt32

from elm_jax.axes import Array, Seeds

_COLUMN = np.uint32(0x9E3779B9)


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
    return TokenSeeds(hash_words(hash_words(seeds) + position * np.uint32(0xC2B2AE35)), position)


def hash_words(x: UInt32[Array, "*places"]) -> UInt32[Array, "*places"]:
    """Mixes the bits of every word: two multiplications between three shifts."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


class AttentionDropoutSeeds(NamedTuple):
    """What dropout of attention's weights draws from; a weight is kept where `is_kept` of the sum says so.

    Attributes:
        query: a word of every query of every head.
        key: a word of every key.
    """

    query: UInt32[Array, "N H Q"]
    key: UInt32[Array, "#N K"]


def is_kept(words: UInt32[Array, "*places"], rate: float) -> Bool[Array, "*places"]:
    """Returns whether places of these words are kept."""
    return hash_words(words) >= np.uint32(min(rate * 2**32, 2**32 - 1))


class Dropout(nn.Module):
    """Dropout whose mask at a place depends on the layer, the token and the place in it alone."""

    rate: float
    train: bool

    def __call__(self, x: Array, tokens: TokenSeeds | None = None) -> Array:
        """Takes states [B, …, N, W]; without tokens a place is told by its row's number and its position."""
        if not self.train or self.rate == 0.0:
            return x
        columns = np.arange(x.shape[-1], dtype=np.uint32).reshape((1,) * (x.ndim - 1) + (-1,)) * _COLUMN
        return drop(x, self._place_words(x.shape[:-1], tokens)[..., None] + columns, self.rate)

    def attention_dropout_seeds(
        self, shape: tuple[int, int, int, int], tokens: TokenSeeds | None, keys: TokenSeeds | None
    ) -> AttentionDropoutSeeds | None:
        """Returns what dropout of weights [N, H, Q, K] draws from; None if nothing is dropped.

        Args:
            shape: of the weights.
            tokens: the queries'.
            keys: of the keys that are weighed, told by their positions if None.
        """
        if not self.train or self.rate == 0.0:
            return None
        positions = np.arange(shape[-1], dtype=np.uint32)[None] if keys is None else keys.position
        return AttentionDropoutSeeds(self._place_words(shape[:-1], tokens), positions * _COLUMN)

    def _place_words(self, shape: tuple[int, ...], tokens: TokenSeeds | None) -> UInt32[Array, "*places"]:
        """Returns a word for every place [B, …, N] of tokens."""
        words = jax.random.key_data(self.make_rng("dropout"))
        if tokens is None:
            tokens = make_token_seeds(np.arange(shape[0], dtype=np.uint32), None, shape[-1])
        assert tokens is not None
        inside = int(np.prod(shape[:-1], dtype=np.int64)) // tokens.word.shape[0]  # answers of a row, heads
        parts = (np.arange(inside, dtype=np.uint32) * np.uint32(0x85EBCA6B))[None, :, None]
        of_token = hash_words(tokens.word ^ words[0])[:, None] + words[1]
        return hash_words(of_token + parts).reshape(shape)


def drop(x: Array, words: UInt32[Array, "*places"], rate: float) -> Array:
    """Returns x with zeros where words are not kept, and the rest larger by as much."""
    return jnp.where(is_kept(words, rate), x / (1.0 - rate), 0.0).astype(x.dtype)
