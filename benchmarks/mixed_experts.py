"""How fast rows of many different experts are scored in one batch, beside one expert and none.

Run     python benchmarks/mixed_experts.py [--json FILE] [--size small] [--layers 4] [--dtype float32] …
        with --gated 296 for routers of tokens
        on an accelerator: --size xl --layers 24 --dtype bfloat16; on a GPU also with
        JAX_RAGGED_DOT_USE_GPU_PALLAS_TRITON_LOWERING=1, without which it has no grouped product of its own
Takes   two and a half minutes of the processor, so half of that on two cores with nothing else to do
Expect  64 experts, gathered: at least 90 % of the rate of one and 85 % of the rate of none; the grouped
        product far behind where XLA expands it, as it does on a CPU

With `--gated 296` it is LoRA alone, and its other ways are gates over so many experts, as routers of tokens
have them: every token compares itself with one direction of each (Arrow, PHATGOOSE, average activation), or
with as many as their rank (SpectR), and four experts share it. Expect at most 1.5 times the seconds of one
expert with one direction, and with 16 only on a base wider than XL: on a narrower one the comparison with all
directions alone costs more. One layer and a 24th of the vocabulary stand for the whole of a large base:
--size large --layers 1 --vocabulary 1339.

Calls of all ways take turns, a ratio is the median of the rounds' own ratios, and on a CPU a second is one of
the processor, of all cores together, so that other work on the machine changes little.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elm_jax.models import expert_layers as ex
from elm_jax.models import gating, paths
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import T5, init_params
from elm_jax.records import Params

OPTIONS = {"bottleneck": {}, "lora": {"rank": 16}, "ia3": {}}
FEW = 1  # rounds of the grouped product, which may take long
LEAST_SECONDS = 0.1  # of one timing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--size", default="small", help="T5 1.1's size")
    parser.add_argument("--layers", type=int, default=4, help="layers of either stack")
    parser.add_argument("--vocabulary", type=int, help="tokens, of which few layers should have few")
    parser.add_argument("--dtype", default="float32", help="of products, parameters and experts")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64, help="of a prompt")
    parser.add_argument("--choices", type=int, default=2)
    parser.add_argument("--answer", type=int, default=8, help="tokens of a choice")
    parser.add_argument("--kinds", nargs="+", default=["bottleneck", "lora"], choices=list(OPTIONS))
    parser.add_argument("--gated", type=int, default=0, help="experts that share every token; 0 for none")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()

    layers = {"num_encoder_layers": options.layers, "num_decoder_layers": options.layers}
    config = find_config(options.size, dtype=options.dtype, **layers)
    config = replace(config, vocab_size=options.vocabulary or config.vocab_size)
    rng = np.random.default_rng(0)
    shape = (options.rows, options.choices, options.answer)
    base = narrow(init_params(jax.random.key(0), config), options.dtype)
    prompts = jnp.asarray(rng.integers(3, config.vocab_size, (options.rows, options.tokens), np.int32))
    answers = jnp.asarray(rng.integers(3, config.vocab_size, shape, np.int32))
    index = jnp.asarray(rng.permutation(options.rows), jnp.int32)

    @jax.jit
    def score(params: Params, *experts: Any) -> jax.Array:
        logits = jnp.asarray(T5(config).apply({"params": params}, prompts, answers, *experts))
        chosen = jnp.take_along_axis(logits, answers[..., None], axis=-1)[..., 0]
        return (chosen - jax.nn.logsumexp(logits, axis=-1)).sum(axis=-1)

    ways: dict[str, Callable[[], jax.Array]] = {"none": lambda: score(base)}
    if options.gated:
        options.kinds = ["lora"]
        stack = narrow(experts("lora", base, options.gated), options.dtype)
        one = jax.tree.map(lambda leaf: leaf[0], stack)
        ways["lora, one"] = lambda: score(base, one)
        for way, gate in gates(stack).items():
            ways[f"lora, {way}"] = lambda gate=gate: score(base, gate)
    for kind in () if options.gated else options.kinds:
        stack = narrow(experts(kind, base, options.rows), options.dtype)
        one = jax.tree.map(lambda leaf: leaf[0], stack)
        ways[f"{kind}, one"] = lambda one=one: score(base, one)
        ways[f"{kind}, mixed"] = lambda stack=stack: score(base, stack, index)
        ways[f"{kind}, grouped"] = lambda stack=stack: score(base, ex.mark_for_ragged_dot(stack), index)

    seconds = timed(ways, options.rounds)
    for kind in () if options.gated else options.kinds:
        apart = jnp.abs(ways[f"{kind}, mixed"]() - ways[f"{kind}, grouped"]()).max()
        assert apart < (1e-2 if options.dtype == "float32" else 1.0), f"{kind}: {apart} nats apart"

    result: dict[str, object] = {"device": jax.devices()[0].device_kind, **vars(options), "json": None}
    for way, times in seconds.items():
        numbers = {"rows_per_second": options.rows / statistics.median(times)}
        numbers["of_none"] = ratio(seconds["none"], times)
        if ", " in way:
            numbers["of_one"] = ratio(seconds[f"{way.split(', ')[0]}, one"], times)
        result[way] = numbers
        shares = "".join(f"{name:>10} {share:7.1%}" for name, share in numbers.items() if "of" in name)
        print(f"{way:22}{numbers['rows_per_second']:10,.1f} rows/s{shares}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def narrow(tree: Params, dtype: str) -> Params:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def experts(kind: str, base: Params, count: int) -> Params:
    """Returns a stack of experts of which no two are alike."""

    def one(key: jax.Array) -> Params:
        fresh = ex.init_expert(kind, key, base, OPTIONS[kind])
        return jax.tree.map(lambda leaf: leaf + 0.01 * jax.random.normal(key, leaf.shape), fresh)

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), count))


def gates(stack: Params) -> dict[str, Params]:
    """Returns gates over all experts of a stack, by their number of directions."""
    lora_a = {path: leaf for path, leaf in paths.flatten(stack).items() if path.endswith("lora_a")}
    rank = next(iter(lora_a.values())).shape[-1]
    made = {}
    for width in (1, rank):
        prototypes = {
            path.removesuffix("/lora_a"): leaf[..., :width].astype("float32") for path, leaf in lora_a.items()
        }
        made[f"gated, {width} of {rank}"] = gating.make_gated_tree(stack, prototypes, k=4)
    return made


def timed(ways: dict[str, Callable[[], jax.Array]], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds that a call took in every round; calls that only compile come before."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    calls = {}
    for way, call in ways.items():
        call().block_until_ready()
        start = clock()
        call().block_until_ready()
        calls[way] = max(1, round(LEAST_SECONDS / (clock() - start)))
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds):
        for way, call in ways.items():
            if "grouped" in way and number >= FEW:
                continue
            start = clock()
            for _ in range(calls[way] - 1):
                call()
            call().block_until_ready()
            seconds[way].append((clock() - start) / calls[way])
    return seconds


def ratio(reference: list[float], times: list[float]) -> float:
    """Returns how many times as fast as the reference the other is, round by round, in the middle."""
    return statistics.median(a / b for a, b in zip(reference, times, strict=False))


if __name__ == "__main__":
    main()
