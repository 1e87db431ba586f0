"""Likelihood: what the network makes of every distinct continuation of many prompts, each encoded once."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from elm_jax.aot.program import jit
from elm_jax.axes import Array, ExpertOfRow
from elm_jax.models.sizes import T5Config
from elm_jax.models.t5 import T5
from elm_jax.records import Params
from elm_jax.scoring.buckets import ScoringBatch

LOGITS_AT_ONCE = 2**23  # 32 MB in float32


class EdgeScores(NamedTuple):
    """What the network makes of every edge of every prompt's trie (see `scoring.tries`).

    Attributes:
        logp: log-probabilities in nats.
        likeliest: whether no token is likelier there: the greedy choice.
    """

    logp: Float[Array, "B M"]
    likeliest: Bool[Array, "B M"]


def score_edges(
    config: T5Config,
    params: Params,
    batch: ScoringBatch,
    experts: Params | None = None,
    expert_of_row: ExpertOfRow | None = None,
) -> EdgeScores:
    """Returns what the network makes of the edges of a batch.

    The output layer is computed for real nodes alone, and for a few of them at a time. Edges of padding mean
    nothing.

    Args:
        config: the network.
        params: of the base.
        batch: prompts and tries.
        experts: one expert's tree for all rows, or with `expert_of_row` a stack of E trees.
        expert_of_row: the place of each row's expert in the stack, [B].
    """

    def network(method: str, *arguments: Array | Params | None) -> Array:
        return jnp.asarray(T5(config).apply({"params": params}, *arguments, method=method))

    prompts, nodes, depths, ancestor_mask, real, edge_nodes, edge_tokens = batch
    encoded = network("encode", prompts, experts, expert_of_row)
    hidden = network("decode_trie", encoded, prompts, nodes, depths, ancestor_mask, experts, expert_of_row)
    rows, count = nodes.shape
    hidden = hidden.reshape(rows * count, -1)
    size = min(rows * count, max(64, LOGITS_AT_ONCE // config.vocab_size))
    # Real nodes first, filled up to whole chunks.
    order = jnp.argsort(~jnp.asarray(real).reshape(-1))
    place = jnp.argsort(order).astype(jnp.int32)
    order = jnp.pad(order, (0, -len(order) % size))
    edge_place = place[(jnp.arange(rows, dtype=jnp.int32) * count)[:, None] + edge_nodes]

    def chunk(number: Array, found: EdgeScores) -> EdgeScores:
        chosen = jax.lax.dynamic_slice_in_dim(order, number * size, size)
        logits = network("project", hidden[chosen])
        best = logits.max(axis=-1)
        normaliser = best + jnp.log(jnp.exp(logits - best[:, None]).sum(axis=-1))
        local = edge_place - number * size
        inside = (local >= 0) & (local < size)
        local = jnp.clip(local, 0, size - 1)
        own = logits[local, edge_tokens]
        return EdgeScores(
            jnp.where(inside, own - normaliser[local], found.logp),
            jnp.where(inside, own >= best[local], found.likeliest),
        )

    chunks = (jnp.asarray(real).sum() + size - 1) // size
    nothing = EdgeScores(jnp.zeros(edge_nodes.shape, jnp.float32), jnp.zeros(edge_nodes.shape, bool))
    return jax.lax.fori_loop(0, chunks, chunk, nothing)


@lru_cache(maxsize=8)
def compiled_scorer(config: T5Config, platform: str) -> Callable[..., EdgeScores]:
    """Returns `edges` for one shape of network, compiled once for each shape of batch.

    One function a shape of network, so that its compilations are shared by every caller and can be counted
    (`compiled(config, platform)._cache_size()`).
    """
    return jit(lambda *arguments: score_edges(config, *arguments), platform=platform)
