"""How much of the host's memory loading a checkpoint takes at most, beside the size of its parameters.

Run     python benchmarks/load_memory.py [--size xl] [--format hf] [--dtype bfloat16] [--json FILE]
Takes   a quarter of a minute for base; two minutes for xl, which wants 6 GB of disk and 8 GB of memory. Linux
Expect  a peak of at most 1.15 times the parameters' bytes for xl, the interpreter and JAX included
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from elm_jax.models import paths
from elm_jax.models.sizes import find_config
from elm_jax.weights import base_model, elm, huggingface, t5x_write

WRITERS = {"hf": huggingface.save, "elm": elm.save, "t5x": t5x_write.save}
READER = """
import json, sys, time
import jax
from elm_jax import load_model

def peak():
    # Not getrusage's, which counts what the parent of this process had.
    told = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(told["VmHWM"].split()[0]) * 1024

jax.devices()
before, start = peak(), time.perf_counter()
model = load_model(sys.argv[1], dtype=sys.argv[2])
seconds = time.perf_counter() - start
held = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
print(json.dumps({"before": before, "peak": peak(), "held": held, "seconds": seconds}))
"""


def random_base(name: str, dtype: str) -> base_model.Base:
    """Returns a base of that size whose parameters are all views of one short run of random numbers."""
    config = find_config(name, dtype=dtype)
    shapes = base_model.param_shapes(config)
    # A stack repeats its one layer.
    own = {path: shape[1:] if f"/{paths.LAYER_STACK}/" in path else shape for path, shape in shapes.items()}
    longest = max(math.prod(shape) for shape in own.values())
    numbers = np.random.default_rng(0).normal(0, 0.05, longest).astype(base_model.DTYPES[dtype])
    params = {
        path: np.broadcast_to(numbers[: math.prod(own[path])].reshape(own[path]), shape)
        for path, shape in shapes.items()
    }
    return base_model.Base(config, paths.unflatten(params), "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", default="base", help="a size of elm_jax.models.sizes")
    parser.add_argument("--format", choices=WRITERS, default="hf", help="what the checkpoint is written as")
    parser.add_argument("--stored", choices=base_model.DTYPES, default="bfloat16", help="type in the file")
    parser.add_argument("--dtype", choices=base_model.DTYPES, default="bfloat16", help="type it is loaded in")
    parser.add_argument("--place", type=Path, help="directory for the temporary checkpoint")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(dir=options.place) as place:
        made = random_base(options.size, options.stored)
        WRITERS[options.format](place, made)
        del made
        command = [sys.executable, "-c", READER, place, options.dtype]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        told = subprocess.run(command, capture_output=True, text=True, env=environment)
        if told.returncode:
            sys.exit(told.stderr)
    found = json.loads(told.stdout)
    result = {
        "size": options.size,
        "format": options.format,
        "parameter_bytes": found["held"],
        "peak_bytes": found["peak"],
        "before_loading_bytes": found["before"],
        "peak_over_parameters": found["peak"] / found["held"],
        "peak_without_interpreter_over_parameters": (found["peak"] - found["before"]) / found["held"],
        "seconds": found["seconds"],
    }
    for name, value in result.items():
        print(f"{name:44}{value:>20,.3f}" if isinstance(value, float) else f"{name:44}{value:>20}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
