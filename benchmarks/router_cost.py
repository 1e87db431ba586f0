"""What a choice costs by every router, from a library of many experts that are made up.

Run     python -m benchmarks.routing --cost [--experts 3000] [--json FILE]
Takes   about two minutes on a core of its own
Expect  every router under 10 CPU seconds and 1 GB

Each router is called in a process of its own, once for a task of 32 queries, and once more for another task.
Experts have 100 keys of width 384 and of a dozen words, and are LoRA of rank 4 at two projections of two
layers, 16,384 numbers each: what a router reads of a larger expert is as many times larger. Seconds are the
processor's, of all threads, with compilation and without imports; memory is the most that the process ever
held, with Python, JAX and the made-up library.
"""

import resource
import time
from typing import Any

import numpy as np

KEYS, WIDTH, QUERIES = 100, 384, 32
LAYERS, INPUTS, OUTPUTS, RANK = 2, 512, 512, 4
PATHS = ("encoder/layers/attention/query", "encoder/layers/attention/value")
WORDS = [f"{first}{second}{third}" for first in "bdfgklpt" for second in "aeiou" for third in "mnrstvz"]
SEEN = "made_up_0"  # the dataset of the task, whose experts may not be chosen


def measure_routers(experts: int) -> list[dict[str, Any]]:
    """Returns one record a router: seconds of the first and of the second choice, and memory."""
    from elm_jax.data import worker_pool
    from elm_jax.routing import table

    found = []
    for name in table.ROUTERS:
        with worker_pool.open_pool(1) as pool:
            found.append(pool.submit(measure_router, name, experts).result())
    return found


def measure_router(name: str, experts: int) -> dict[str, Any]:
    """Calls one router for two tasks, and returns what that took."""
    from elm_jax.routing import mbc, table

    router = table.find_router(name)
    index, queries = make_index(experts, router.reads)
    arguments = make_arguments(router.reads, experts)
    if name == "genknowsub":
        arguments["general"] = index.experts[1]
    times = []
    for task in queries:
        started = time.process_time()
        if "parameter_points" in router.reads and "parameter_points" not in arguments:
            params = arguments.pop("params")
            arguments["parameter_points"] = mbc.embed_experts(params)
        router.route(task, index, exclude=(SEEN,), **arguments)
        times.append(time.process_time() - started)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"router": name, "first": times[0], "again": times[1], "megabytes": memory}


def make_index(experts: int, reads: tuple[str, ...]) -> Any:
    """Returns a key index, and the queries of two tasks; vectors and texts only if they are read."""
    from elm_jax.routing import key_index
    from elm_jax.routing.inputs import KeyIndex, Queries

    rng = np.random.default_rng(0)
    owners = np.repeat(np.arange(experts, dtype=np.int32), KEYS)
    width = WIDTH if "vectors" in reads else 1
    parts = (rng.standard_normal((KEYS, width), np.float32) for _ in range(experts))
    vectors = key_index.join_vectors(parts, (len(owners), width))

    def make_texts(count: int) -> tuple[str, ...]:
        if "texts" not in reads:
            return ("",) * count
        return tuple(
            " ".join(WORDS[word] for word in row) for row in rng.integers(0, len(WORDS), (count, 12))
        )

    ids = tuple(f"made_up_{expert}/one" for expert in range(experts))
    datasets = tuple((name.partition("/")[0],) for name in ids)
    index = KeyIndex(ids, datasets, owners, vectors, make_texts(len(owners)), "made up", "instance")
    rows = tuple(map(str, range(QUERIES)))
    queries = [
        Queries(
            f"task_{task}/one",
            rows,
            make_texts(QUERIES),
            rng.standard_normal((QUERIES, width), np.float32),
            "made up",
            "instance",
        )
        for task in range(2)
    ]
    return index, queries


def make_arguments(reads: tuple[str, ...], experts: int) -> dict[str, Any]:
    """Returns what a router reads beside queries and keys."""
    rng = np.random.default_rng(1)

    def make_factor(*shape: int) -> np.ndarray:
        return rng.standard_normal((experts, LAYERS, *shape), np.float32)

    if "params" in reads or "parameter_points" in reads:
        leaves = {"lora_a": make_factor(INPUTS, RANK), "lora_b": make_factor(RANK, OUTPUTS)}
        params = {"encoder": {"layers": {"attention": {"query": leaves, "value": leaves}}}}
        return {"params": params}
    if set(reads) & {"activations", "gates"}:
        return {name: {path: make_factor(INPUTS) for path in PATHS} for name in reads}
    others = {
        "expert": "made_up_1/one",
        "accuracies": {f"made_up_{expert}/one": float(rng.random()) for expert in range(experts)},
        "loss": lambda weights: sum((weight - 0.1) ** 2 for weight in weights.values()),
    }
    return {name: value for name, value in others.items() if name in reads}


def table_of(costs: list[dict[str, Any]]) -> list[str]:
    """Returns the table in Markdown, the dearest first."""
    rows = sorted(costs, key=lambda cost: -cost["first"])
    head = [
        "| router | CPU seconds, the first task | another task | memory, MB |",
        "| --- | ---: | ---: | ---: |",
    ]
    return head + [
        f"| `{row['router']}` | {row['first']:.1f} | {row['again']:.2f} | {row['megabytes']:,.0f} |"
        for row in rows
    ]
