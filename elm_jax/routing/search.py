"""Search: the rows of an index nearest to each query, exactly.

The original compared every query with every key in a Python loop and stored the experts in a dictionary by
similarity, so that of equally near keys only one was left. Here it is one matrix product per block of rows,
and ties go to the lowest row.
"""

from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Bool, Float, Int

from elm_jax.aot.program import Program, with_replication
from elm_jax.axes import Array, Embeddings
from elm_jax.errors import UserError

KEYS_PER_BLOCK = 8192
"""Rows compared at a time: memory besides the rows is queries × BLOCK similarities, however many rows."""


def top_k(
    queries: Float[Array, "Q D"],
    rows: Embeddings,
    k: int,
    *,
    allowed: Bool[Array, " N"] | None = None,
    block: int = KEYS_PER_BLOCK,
) -> tuple[Float[Array, "Q k"], Int[Array, "Q k"]]:
    """Returns the `k` largest dot products of each query, largest first, and their rows.

    They are computed in float32, whatever the type of the inputs, on every device (no TF32 or bfloat16
    passes). Of equal products the lowest row comes first. May be called inside `jax.jit` with `k` and
    `block` fixed.

    Args:
        queries: The queries.
        rows: What they are compared with.
        k: How many rows are found for each query.
        allowed: False for rows to skip; if fewer than `k` are left, the rest is -inf at row -1. Another
            `allowed` of the same shape compiles nothing.
        block: How many rows are compared at a time.

    Returns:
        The products and the numbers of the rows.

    Raises:
        UserError: If `k` is not between 1 and the number of rows.

    >>> similarities, positions = top_k(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0], [2.0, 0.0]]), 1)
    >>> similarities.tolist(), positions.tolist()
    ([[2.0]], [[1]])
    """
    if not 1 <= k <= rows.shape[0]:
        raise UserError(f"Expected k from 1 to {rows.shape[0]}, the number of rows, got {k}.")
    if block < 1:
        raise UserError(f"Expected blocks of at least one row, got {block}.")
    mask = jnp.ones(rows.shape[0], bool) if allowed is None else jnp.asarray(allowed)
    compared = jnp.asarray(queries, jnp.float32), jnp.asarray(rows), mask
    return search_program(*compared, k, block=block).function(*compared)


def search_program(
    queries: Any, rows: Any, allowed: Any, k: int, *, block: int = KEYS_PER_BLOCK, mesh: Mesh | None = None
) -> Program:
    """Returns the program that searches rows [N, D] for the `k` nearest to queries [Q, D].

    Args:
        queries: An array, or its shape.
        rows: Likewise.
        allowed: Likewise, [N].
        k: How many rows are found for each query.
        block: How many rows are compared at a time.
        mesh: Devices that each hold all of it; by default the default device.
    """
    arguments = (queries, rows, allowed)
    shapes = tuple(with_replication(mesh, jax.ShapeDtypeStruct(each.shape, each.dtype)) for each in arguments)
    return Program("search", _compile_search(k, min(block, rows.shape[0])), shapes)


@lru_cache(maxsize=64)
def _compile_search(k: int, block: int) -> Any:
    return jax.jit(partial(_search, k=k, block=block))


def top_k_sharded(
    queries: Float[Array, "Q D"],
    rows: Embeddings,
    k: int,
    *,
    mesh: Mesh,
    axis: str,
    allowed: Bool[Array, " N"] | None = None,
    block: int = KEYS_PER_BLOCK,
) -> tuple[Float[Array, "Q k"], Int[Array, "Q k"]]:
    """Like `top_k`, for rows that are sharded evenly along an axis of a mesh.

    Every device searches its own rows, and only the `k` best of each shard are sent.

    Raises:
        UserError: As `top_k` does, or if the rows cannot be sharded evenly.
    """
    parts = mesh.shape[axis]
    if rows.shape[0] % parts:
        raise UserError(
            f"Expected a multiple of {parts} rows, one share per device, got {rows.shape[0]}. Fix: add rows "
            "that `allowed` marks False."
        )
    local = rows.shape[0] // parts
    mask = jnp.ones(rows.shape[0], bool) if allowed is None else jnp.asarray(allowed)

    def search(queries: jax.Array, rows: jax.Array, allowed: jax.Array) -> tuple[jax.Array, jax.Array]:
        similarity, row = top_k(queries, rows, min(k, local), allowed=allowed, block=block)
        row = jnp.where(row < 0, -1, row + jax.lax.axis_index(axis) * local)
        # Shards are in the order of rows, so the first of equals is the lowest row here too.
        similarity, row = (jax.lax.all_gather(each, axis, axis=1, tiled=True) for each in (similarity, row))
        similarity, best = jax.lax.top_k(similarity, k)
        return similarity, jnp.take_along_axis(row, best, axis=1)

    if not 1 <= k <= rows.shape[0]:
        return top_k(queries, rows, k)  # which raises
    specs = (PartitionSpec(), PartitionSpec(axis), PartitionSpec(axis))
    mapped = jax.shard_map(
        search, mesh=mesh, in_specs=specs, out_specs=(PartitionSpec(), PartitionSpec()), check_vma=False
    )
    return mapped(jnp.asarray(queries, jnp.float32), jnp.asarray(rows), mask)


def _search(
    queries: Float[Array, "Q D"], rows: Float[Array, "N D"], allowed: Bool[Array, " N"], k: int, block: int
) -> tuple[Float[Array, "Q k"], Int[Array, "Q k"]]:
    def merge(number: jax.Array, best: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        # The last block is moved back so that all are of one size without copying the index to pad it; the
        # rows it shares with the block before are masked.
        first = jnp.minimum(number * block, rows.shape[0] - block)
        position = first + jnp.arange(block, dtype=jnp.int32)
        fresh = (position >= number * block) & jax.lax.dynamic_slice_in_dim(allowed, first, block)
        # Widened here, for float32 copies of all rows would be twice a bfloat16 index.
        here = jax.lax.dynamic_slice_in_dim(rows, first, block).astype(jnp.float32)
        product = jnp.matmul(queries, here.T, precision=jax.lax.Precision.HIGHEST)
        # `lax.top_k` puts 0 before -0, which would order ties by sign rather than by row.
        product = jnp.where(product == 0.0, 0.0, product)
        product = jnp.where(fresh[None, :], product, -jnp.inf)
        near, at = jax.lax.top_k(product, min(k, block))
        # `lax.top_k` prefers the earlier of equals, and what earlier blocks found stands first, as do the
        # empty places it began with before rows that are not allowed.
        similarity = jnp.concatenate([best[0], near], axis=1)
        row = jnp.concatenate([best[1], position[at]], axis=1)
        similarity, order = jax.lax.top_k(similarity, k)
        return similarity, jnp.take_along_axis(row, order, axis=1)

    start = (
        jnp.full((queries.shape[0], k), -jnp.inf, jnp.float32),
        jnp.full((queries.shape[0], k), -1, jnp.int32),
    )
    return jax.lax.fori_loop(0, -(-rows.shape[0] // block), merge, start)
