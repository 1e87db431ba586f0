"""What `elm doctor --plan` predicts, beside what is measured here: memory, traffic and time of small shapes.

Run     python -m benchmarks.planning [--json FILE]
Takes   about three minutes on two idle cores
Expect  see benchmarks/RESULTS.md and docs/planning.md

Memory is what XLA reports for the compiled programs and traffic what their text says, on eight devices that
this CPU is divided into. Time is that of the same programs on one device, whose "data sheet" is measured
first: the rate of a product of large matrices, and of a copy. All networks are random.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.rank_scoring import matmul_rate
from elm_jax.engine import evaluate
from elm_jax.models import experts as ex
from elm_jax.models import sharding
from elm_jax.models.sizes import size
from elm_jax.models.t5 import init_params
from elm_jax.runs import collectives, plan, roofline, traffic
from elm_jax.runs.plan import Work
from elm_jax.runs.rates import Rates
from elm_jax.scoring.buckets import Row
from elm_jax.training import optimizers, step

ONE: Mapping[str, int] = dict.fromkeys(sharding.AXES, 1)
WIDTHS: Mapping[str, Any] = {"emb_dim": 128, "num_heads": 4, "head_dim": 64, "mlp_dim": 256}
SCANNED = size("tiny", **WIDTHS, num_encoder_layers=5, num_decoder_layers=5, dropout_rate=0.1)
PACKED = Work(SCANNED, group=8, train_tokens=32 * 120, prompt=96, answer=24, segments=3)
SMALL = Work(size("small"), group=8, train_tokens=16 * 160, prompt=128, answer=32, segments=3)
REMAT = replace(PACKED, network=replace(SCANNED, remat=True))
FULL = replace(PACKED, kind="full", optimizer="adafactor")
LAYOUTS: Mapping[str, tuple[Work, Mapping[str, int]]] = {
    "8 bottlenecks": (PACKED, {}),
    "8 bottlenecks, remat": (REMAT, {}),
    "1 bottleneck": (replace(PACKED, group=1), {}),
    "8 LoRAs": (replace(PACKED, kind="lora"), {}),
    "full, Adafactor": (FULL, {}),
    "8 bottlenecks of T5 small": (SMALL, {}),
    "8 bottlenecks on expert=8": (PACKED, {"expert": 8}),
    "8 bottlenecks on data=8": (PACKED, {"data": 8}),
    "8 bottlenecks on fsdp=8": (PACKED, {"fsdp": 8}),
    "8 bottlenecks on expert=2 data=4": (PACKED, {"expert": 2, "data": 4}),
    "8 bottlenecks on expert=2 fsdp=4": (PACKED, {"expert": 2, "fsdp": 4}),
    "8 bottlenecks on data=2 tensor=4": (PACKED, {"data": 2, "tensor": 4}),
    "8 LoRAs on data=2 fsdp=4": (replace(PACKED, kind="lora"), {"data": 2, "fsdp": 4}),
    "full on data=8": (FULL, {"data": 8}),
    "full on fsdp=8": (FULL, {"fsdp": 8}),
}
TIMED: Mapping[str, Work] = {
    "8 bottlenecks": SMALL,
    "1 bottleneck": replace(SMALL, group=1),
    "8 LoRAs": replace(SMALL, kind="lora"),
    "8 bottlenecks, rows of 256 + 32": replace(SMALL, prompt=256, train_tokens=8 * 288),
    "full, AdamW": replace(SMALL, kind="full"),
}
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--part", choices=("programs", "times"), help="print one part alone, as JSON")
    options = parser.parse_args()
    if options.part:
        print(json.dumps(programs() if options.part == "programs" else times()))
        return
    found = {part: _apart(part) for part in ("programs", "times")}
    for each in found["programs"]:
        print(
            f"{each['what']:<36} between {each['between']:.2f}  held {each['held']:.3f}  "
            f"sent {'–' if each['sent'] is None else format(each['sent'], '.3f')}"
        )
    for each in found["times"]["batches"]:
        print(
            f"{each['what']:<36} predicted {each['predicted']:.2f} s  measured {each['measured']:.2f} s  "
            f"{each['predicted'] / each['measured']:.2f}"
        )
    rates = found["times"]["rates"]
    print(f"products {rates['flops'] / 1e9:.0f} GFLOP/s, a copy {rates['memory'] / 1e9:.1f} GB/s")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


def programs() -> list[dict[str, Any]]:
    """Returns predicted over reported, of each layout: what lies between, what is held, what is sent."""
    found = []
    for what, (work, sizes) in LAYOUTS.items():
        mesh = {**ONE, **sizes}
        gather, advance = compiled(work, mesh)
        need = plan.need(work, mesh)
        reported = [each.memory_analysis() for each in (gather, advance)]
        between = need.activations_remat if work.network.remat else need.activations
        text = collectives.by_axes(collectives.collectives(gather.as_text(), mesh))
        sent = sum(collectives.by_axes(traffic.training(work, mesh)).values())
        found.append(
            {
                "what": what,
                "between": between / max(each.temp_size_in_bytes for each in reported),
                "held": (need.state + need.gradients) / reported[1].argument_size_in_bytes,
                "sent": sent / sum(text.values()) if text else None if not sent else float("inf"),
            }
        )
    return found


def compiled(work: Work, mesh: Mapping[str, int]) -> tuple[Any, Any]:
    """Returns the programs that add a batch and that move experts, compiled for a mesh from shapes alone."""
    on = sharding.mesh(jax.devices()[: int(np.prod(list(mesh.values())))], **mesh)
    base, state, sums, rows, move = _shapes(work, mesh["expert"])
    state, sums = (_laid(tree, sharding.shardings(on, tree, experts=True)) for tree in (state, sums))
    base = _laid(base, sharding.shardings(on, base))
    rows = _laid(rows, sharding.batch_shardings(on, rows))
    gather: Any = step.gather(work.network, work.kind)
    advance: Any = step.advance(optimizers.optimizer(work.optimizer))
    lowered = gather.lower(state.params, base, rows, sums), advance.lower(state, sums, move)
    return lowered[0].compile(), lowered[1].compile()


def times() -> dict[str, Any]:
    """Returns predicted and measured seconds of batches on one device."""
    scoring = replace(SMALL, experts=1, prompt=128, answer=8, batch_tokens=16 * 136)
    products, copies = matmul_rate(), copy_rate()
    measured = [(what, roofline.training(work, ONE), trained(work)) for what, work in TIMED.items()]
    measured += [("scoring 16 rows", roofline.scoring(scoring), scored(scoring))]
    # The better of before and after: a machine's rates change while others use it.
    rates = Rates(max(products, matmul_rate()), max(copies, copy_rate()), ring=1.0, host=1)
    batches = [
        {"what": what, "predicted": cost.seconds(rates).together, "measured": seconds}
        for what, cost, seconds in measured
    ]
    return {"rates": {"flops": rates.flops, "memory": rates.memory}, "batches": batches}


def trained(work: Work) -> float:
    """Returns the seconds of a batch and a move, the best of some."""
    _, shapes, sums, rows, _ = _shapes(work, 1)
    params = jax.tree.map(jnp.asarray, init_params(jax.random.key(0), work.network))
    one = ex.init(work.kind, jax.random.key(1), params, **dict(work.options))
    places = jax.tree.leaves(shapes.params)[0].shape[0]
    optimizer = optimizers.optimizer(work.optimizer)
    state = step.start(step.stack([one] * places), optimizer)
    sums = step.nothing(state.params)
    batch = _random(rows, work, places)
    moving = step.Move(np.full(places, 1e-4, np.float32), np.ones(places, bool), np.zeros(places, np.int32))
    gather, advance = step.gather(work.network, work.kind), step.advance(optimizer)
    best = float("inf")
    for number in range(ROUNDS + 1):
        began = time.perf_counter()
        sums = gather(state.params, params, batch, sums)
        state, sums, loss = advance(state, sums, moving)
        jax.block_until_ready((state, sums, loss))
        if number:  # the first compiles
            best = min(best, time.perf_counter() - began)
    return best


def scored(work: Work) -> float:
    """Returns the seconds of a batch that is scored with an expert, the best of some."""
    params = init_params(jax.random.key(0), work.network)
    experts = step.stack([ex.init("bottleneck", jax.random.key(1), params)])
    draw = np.random.default_rng(0)
    count = work.batch_tokens // (work.prompt + work.answer)
    rows = [
        Row(draw.integers(2, 1000, work.prompt).tolist(), [draw.integers(2, 1000, work.answer).tolist()])
        for _ in range(count)
    ]
    best = float("inf")
    for number in range(ROUNDS + 1):
        began = time.perf_counter()
        evaluate.score_rows(work.network, params, rows, experts, batch_tokens=work.batch_tokens)
        if number:
            best = min(best, time.perf_counter() - began)
    return best


def copy_rate() -> float:
    """Returns the bytes a second that a copy reads and writes, the best of some."""
    there = jnp.ones(2**26, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    copy(there).block_until_ready()
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        copy(there).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return 2 * there.nbytes / best


def _shapes(work: Work, parts: int) -> tuple[Any, Any, Any, Any, Any]:
    """Returns the shapes of base, state, sums, a batch and a move."""

    def of(*sizes: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct(sizes, dtype)

    base, expert = plan.shapes(work)
    places = parts if work.kind == "full" else work.group
    params = jax.tree.map(lambda leaf: of(places, *leaf.shape, dtype=leaf.dtype), expert)
    optimizer = optimizers.optimizer(work.optimizer)
    state = jax.eval_shape(lambda params: step.start(params, optimizer), params)
    sums = jax.eval_shape(step.nothing, params)
    count, slots = work.train_tokens // (work.prompt + work.answer), work.segments
    tokens = [of(count, length) for length in (work.prompt, work.prompt, work.answer, work.answer)]
    slots = [of(count, slots, dtype=dtype) for dtype in (jnp.int32, jnp.float32, jnp.uint32)]
    move: Any = step.Move(of(places, dtype=jnp.float32), of(places, dtype=jnp.bool_), of(places))
    rows: Any = step.Rows(*tokens, *slots)
    return base, state, sums, rows, move


def _laid(tree: Any, to: Any) -> Any:
    return jax.tree.map(lambda leaf, on: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on), tree, to)


def _random(rows: Any, work: Work, places: int) -> step.Rows:
    """Returns a batch of random tokens whose rows are full."""
    draw = np.random.default_rng(0)
    laid = {}
    for name, leaf in rows._asdict().items():
        if name.endswith("segments"):
            width = leaf.shape[1]
            one = 1 + np.arange(width) * work.segments // width
            laid[name] = np.broadcast_to(one, leaf.shape).astype(np.int32)
        elif name == "share":
            laid[name] = np.full(leaf.shape, 0.01, np.float32)
        else:
            most = places if name == "place" else 1000
            laid[name] = draw.integers(0 if name == "place" else 2, max(most, 1), leaf.shape).astype(
                leaf.dtype
            )
    return step.Rows(**laid)


def _apart(part: str) -> Any:
    """Runs a part in a process of its own: eight devices would slow the one that is timed."""
    flags = " --xla_force_host_platform_device_count=8" if part == "programs" else ""
    own = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + flags}
    command = [sys.executable, "-m", "benchmarks.planning", "--part", part]
    told = subprocess.run(command, env=own, check=True, capture_output=True, text=True).stdout
    return json.loads(told.splitlines()[-1])


if __name__ == "__main__":
    main()
