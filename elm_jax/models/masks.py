"""Masks: which keys a query of attention sees."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from elm_jax.axes import Array

MASKED = -1e10  # finite, so that a row of padding alone gives no NaN
NEVER_ATTENDED = -1


@partial(jax.tree_util.register_dataclass, data_fields=("queries", "keys"), meta_fields=("causal",))
@dataclass(frozen=True)
class SegmentMask:
    """A mask of segments: a query sees the keys of its own.

    Attributes:
        queries: the segment of every query; None if they see all keys but those that are NEVER_ATTENDED.
        keys: the segment of every key, or NEVER_ATTENDED; None if all are seen.
        causal: whether a query sees no key at a later position than its own.
    """

    queries: Int[Array, "N Q"] | None
    keys: Int[Array, "N K"] | None
    causal: bool = False

    def to_bool(self, queries: int, keys: int) -> Bool[Array, "_ _ K"]:
        """Returns whether a query sees a key; an axis is 1 where all rows or queries are alike."""
        seen = jnp.ones((1, 1, keys), bool)
        if self.keys is not None and self.queries is not None:
            seen = self.queries[:, :, None] == self.keys[:, None]
        elif self.keys is not None:
            seen = (self.keys != NEVER_ATTENDED)[:, None]
        if self.causal:
            seen = seen & (jnp.arange(keys)[None] <= jnp.arange(queries)[:, None])[None]
        return seen

    def to_segments(self, rows: int, queries: int, keys: int) -> tuple[Int[Array, "N Q"], Int[Array, "N K"]]:
        """Returns the segments of that many queries and keys, none of them None."""
        of_keys = jnp.zeros((rows, keys), jnp.int32) if self.keys is None else self.keys
        if self.queries is None:
            return jnp.zeros((rows, queries), jnp.int32), jnp.where(
                of_keys == NEVER_ATTENDED, NEVER_ATTENDED, 0
            )
        return self.queries, of_keys


Mask = SegmentMask | Bool[Array, "B _ K"]


def mask_bias(seen: Bool[Array, "..."]) -> Float[Array, "..."]:
    """Returns the bias that hides what is not seen."""
    return jnp.where(seen, 0.0, MASKED)
