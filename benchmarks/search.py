"""How fast the nearest keys of a batch of queries are found, beside NumPy, and what memory it takes.

Run     python -m benchmarks.search [--json FILE] [--queries 32] [--keys 30000] [--width 384] [--rounds 40]
Takes   a quarter of a minute on two cores
Expect  at most 1 ms a query on two cores, and beside the keys the same memory for 10 million as for 30,000

NumPy's side is the product of all queries with all keys, and `argpartition`. One side comes after the other:
where they take turns ours needs twice the processor's seconds, because of NumPy's product but for a reason
not known, and a router does not stand between such products. The ratio is of the processor's seconds, so
that other work on the machine changes little; beside it stand the best and the median round by the clock.
Memory is what the compiled program asks for beside its arguments, so ten million keys need not be there. Both
sides find the same keys, or nothing is told.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from elm_jax.routing import search

MANY = 10_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--queries", type=int, default=32, help="of a batch")
    parser.add_argument("--keys", type=int, default=30_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    keys, queries = (unit(rng, count, options.width) for count in (options.keys, options.queries))
    there = jnp.asarray(keys)  # where a library's index is, too
    result: dict[str, object] = {"device": jax.devices()[0].device_kind, **vars(options), "json": None}
    for k in (1, 10):
        sides: dict[str, Callable[[], np.ndarray]] = {
            "elm_jax": lambda k=k: np.asarray(search.top_k(queries, there, k)[1]),
            "numpy": lambda k=k: plain(queries, keys, k),
        }
        ours, theirs = (side() for side in sides.values())
        assert all(set(a) == set(b) for a, b in zip(ours, theirs, strict=True)), "other keys were found"
        seconds = {name: [timed(side) for _ in range(options.rounds)] for name, side in sides.items()}
        told: dict[str, object] = {}
        for name, times in seconds.items():
            clock, processor = (
                [1e3 * taken / options.queries for taken in kind] for kind in zip(*times, strict=True)
            )
            told[name] = {
                "best": min(clock),
                "median": statistics.median(clock),
                "processor": statistics.median(processor),
            }
        of_each = {name: statistics.median(taken[1] for taken in times) for name, times in seconds.items()}
        told["numpy / elm_jax"] = of_each["numpy"] / of_each["elm_jax"]
        result[f"top {k}, ms a query"] = told
    result["bytes_beside_the_keys"] = {
        count: beside(options.queries, count, options.width) for count in (options.keys, MANY)
    }
    for name, value in result.items():
        print(f"{name:24} {value}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def unit(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    vectors = rng.normal(size=(count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def plain(queries: np.ndarray, keys: np.ndarray, k: int) -> np.ndarray:
    return np.argpartition(-(queries @ keys.T), k, axis=1)[:, :k]


def beside(queries: int, count: int, width: int) -> int:
    """Returns the bytes that the search of so many keys asks for beside them."""
    shapes = [((queries, width), jnp.float32), ((count, width), jnp.float32), ((count,), jnp.bool_)]
    given = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    find = jax.jit(lambda queries, keys, may: search.top_k(queries, keys, 10, allowed=may))
    analysis = find.lower(*given).compile().memory_analysis()
    if analysis is None:
        raise SystemExit("This device does not tell what memory a program asks for.")
    return analysis.temp_size_in_bytes


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Returns the seconds of the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


if __name__ == "__main__":
    main()
