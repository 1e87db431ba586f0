"""How long the network takes to trace and compile at several depths: scanned, it does not grow.

Run     python benchmarks/compile_time.py [--json FILE] [--size small] [--depths 4 12 24] [--rounds 3]
Takes   about two minutes on two cores
Expect  24 layers within 1.2 times of 4, for logits and for gradients; 4 are unrolled, so they may take longer

Depths take turns and the least of the rounds counts. A second is one of the processor, of all cores together,
so that other work on the machine changes little. Nothing is run, and no weights are made.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from elm_jax.models.sizes import T5Config, find_config
from elm_jax.models.t5 import T5, init_params
from elm_jax.training.loss import token_losses


def logits(config: T5Config) -> Callable[..., Any]:
    return lambda params, prompts, answers: T5(config).apply({"params": params}, prompts, answers)


def gradient(config: T5Config) -> Callable[..., Any]:
    """The gradient of every parameter, with dropout."""

    def loss(params: Any, prompts: jax.Array, answers: jax.Array) -> Any:
        network = T5(config, train=True)
        rngs = {"dropout": jax.random.key(0)}
        found = jnp.asarray(network.apply({"params": params}, prompts, answers, rngs=rngs))
        return token_losses(found[:, 0], answers[:, 0]).mean()

    return jax.grad(loss)


PROGRAMS = {"logits": logits, "gradient": gradient}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--size", default="small", help="whose widths")
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 12, 24], help="layers of either stack")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256, help="of a prompt")
    parser.add_argument("--answer", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    prompts = jax.ShapeDtypeStruct((options.rows, options.tokens), jnp.int32)
    answers = jax.ShapeDtypeStruct((options.rows, 1, options.answer), jnp.int32)

    def seconds(program: str, depth: int) -> float:
        config = find_config(options.size, num_encoder_layers=depth, num_decoder_layers=depth)
        params = jax.eval_shape(lambda: init_params(jax.random.key(0), config))
        jax.clear_caches()
        start = time.process_time()
        jax.jit(PROGRAMS[program](config)).lower(params, prompts, answers).compile()
        return time.process_time() - start

    seconds("logits", 1)  # what is done once in a process is no part of any depth
    least: dict[tuple[str, int], float] = {}
    for _ in range(options.rounds):
        for program in PROGRAMS:
            for depth in options.depths:
                found = seconds(program, depth)
                least[program, depth] = min(found, least.get((program, depth), found))

    result: dict[str, float] = {f"{program}_{depth}_seconds": s for (program, depth), s in least.items()}
    shallow, deep = min(options.depths), max(options.depths)
    for program in PROGRAMS:
        result[f"{program}_{deep}_to_{shallow}"] = least[program, deep] / least[program, shallow]
    for name, value in result.items():
        print(f"{name:32}{value:8.2f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
