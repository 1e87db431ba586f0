"""Decoding: the answers that the network writes itself, each token the likeliest after those before it.

Greedy decoding, as the original evaluates tasks whose answers are free text. A prompt is encoded once; then
tokens are decoded one at a time, with a cache of the keys and values of those before.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int

from elm_jax.aot.program import jit
from elm_jax.axes import PAD, Array, ExpertOfRow, Prompts
from elm_jax.models.sizes import T5Config
from elm_jax.models.stacks import DecodeCache
from elm_jax.models.t5 import T5
from elm_jax.records import Params

NAN_TOKEN = -1
"""Ends an answer at the first token whose logits are NaN."""
# A step of decoding reads all parameters and the cache from HBM for a few products, so it takes as long as
# that: the larger the blocks that it reads, the better. By default half as much lies on the chip.
COMPILER_OPTIONS: Mapping[str, Mapping[str, Any]] = {"tpu": {"xla_tpu_scoped_vmem_limit_kib": "32768"}}
DecodingState = tuple[Int[Array, "B T"], Int[Array, " B"], Bool[Array, " B"], DecodeCache]


def decode_greedy(
    config: T5Config,
    params: Params,
    prompts: Prompts,
    length: int,
    eos: int | Int[Array, ""],
    experts: Params | None = None,
    expert_of_row: ExpertOfRow | None = None,
) -> Int[Array, "B T"]:
    """Returns the likeliest token after those before it, again and again; of equals the first.

    Decoding stops when the last row has ended.

    Args:
        config: the network.
        params: of the base.
        prompts: token ids [B, S].
        length: tokens of an answer, at most.
        eos: the token that ends an answer.
        experts: one expert's tree for all rows, or with `expert_of_row` a stack of E trees.
        expert_of_row: the place of each row's expert in the stack, [B].

    Returns:
        Token ids [B, T], end-of-sequence included and padding after it; `NAN_TOKEN` if the logits hold NaN.
    """

    def apply(method: str, *arguments: Any) -> Any:
        return T5(config).apply({"params": params}, *arguments, method=method)

    prepared = apply("prepare_experts", experts)

    def network(method: str, *arguments: Any) -> Any:
        return apply(method, *arguments, prepared, expert_of_row)

    rows = prompts.shape[0]
    cache = network("start_cache", network("encode", prompts), prompts, length)
    of_rows = apply("gather_experts", prepared, expert_of_row)

    def some_go_on(state: DecodingState) -> Bool[Array, ""]:
        _, _, ended, cache = state
        return (cache.position < length) & ~jnp.all(ended)

    def step(state: DecodingState) -> DecodingState:
        tokens, last, ended, cache = state
        position = cache.position
        logits, cache = apply("decode_step", cache, last, *of_rows)
        best = logits.argmax(axis=-1).astype(jnp.int32)
        # The maximum is NaN as soon as one of the logits is.
        found = jnp.where(ended, PAD, jnp.where(jnp.isnan(logits.max(axis=-1)), NAN_TOKEN, best))
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, found[:, None], position, axis=1)
        return tokens, jnp.maximum(found, PAD), ended | (found == eos) | (found == NAN_TOKEN), cache

    nothing = jnp.full((rows, length), PAD, jnp.int32)
    start = (nothing, jnp.full(rows, PAD, jnp.int32), jnp.zeros(rows, bool), cache)
    return jax.lax.while_loop(some_go_on, step, start)[0]


@lru_cache(maxsize=8)
def compiled_decoder(config: T5Config, length: int, platform: str) -> Callable[..., Int[Array, "B T"]]:
    """Returns `generate` for one shape of network and one length, compiled once for each shape of batch.

    It takes parameters, prompts, end-of-sequence, experts and their index, and as `likelihood.compiled` its
    compilations can be counted.
    """

    def run(
        params: Params,
        prompts: Prompts,
        eos: Int[Array, ""],
        experts: Params | None = None,
        expert_of_row: ExpertOfRow | None = None,
    ) -> Int[Array, "B T"]:
        return decode_greedy(config, params, prompts, length, eos, experts, expert_of_row)

    return jit(run, platform=platform, compiler_options=COMPILER_OPTIONS)
