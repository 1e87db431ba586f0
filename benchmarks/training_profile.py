"""Where a training batch's time goes, by kind of operation: a group of experts beside one plain expert.

Run     python -m benchmarks.training_profile [--json FILE]
Takes   about two minutes on two idle cores
Expect  see benchmarks/RESULTS.md

The batches are those of `benchmarks.grouped_training`: a group of eight experts, and the same rows as one
expert's. XLA's profiler tells how long every operation of the compiled program ran on a thread; operations
are told apart by what they compute and by the part of the network that asked for them. Threads work at the
same time, and a product's own threads are not counted twice, so the shares are of all that was measured, not
of wall time, which stands beside them.
"""

import argparse
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import training_rows
from benchmarks.rank_scoring import SHARED, matmul_rate
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import init_params
from elm_jax.training import batches, step
from elm_jax.training.group import Group
from elm_jax.training.programs import GroupPlan, layout_for

COUNT = 4  # batches
# The first that fits a compiled operation's name in the network, or its own.
KINDS = {
    "experts": r"bn[gio],b\w+->|_adapter|layers/bn|bgd|scatter|gather",
    "attention": r"n[hqk]{2,3}d?|attention/(reduce|sub|exp|mul|drop|jit)|checkpoint/(reduce|sub|exp)",
    "output layer and loss": r"logits_dense|project|log_softmax|logsumexp",
    "products of the base": r"/(query|key|value|out|wi_\d|wi|wo)/dot_general",
    "dropout": r"drop|select_n|xor|shift",
    "norms and activations": r"norm|tanh|gelu|rsqrt|integer_pow|mlp/",
    "keeping and cutting for the scan over layers": r"dynamic_(update_)?(index|slice)|broadcast_in_dim",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--data", type=Path, default=SHARED, help="directory of datasets")
    parser.add_argument("--templates", type=Path, default=None, help="PromptSource's")
    parser.add_argument("--size", default="small", help="T5 1.1's size")
    options = parser.parse_args()

    config = find_config(options.size, dropout_rate=0.1)
    params = jax.tree.map(np.asarray, init_params(jax.random.key(0), config))
    rows = training_rows.real_rows(options.data, options.templates, 2 * training_rows.BATCH)
    with tempfile.TemporaryDirectory() as place:
        training_rows.write(Path(place), config, params, rows)
        jobs = training_rows.jobs(Path(place), 2)
    base = jax.device_put(params)
    measured_jobs = [batches.measure(job) for job in jobs]
    plan = GroupPlan(max_experts=len(jobs))
    cost = batches.batch_cost(config, "bottleneck", jax.default_backend())
    shape = batches.choose_shape(measured_jobs, plan.batch_tokens, slots=len(jobs), cost=cost)
    waiting = [
        example
        for done in (0, 1)
        for slot, own in enumerate(measured_jobs)
        for example in batches.step_examples(own, slot, done)
    ]
    cut = []
    while len(cut) < COUNT:
        cut.append(batches.pack([waiting], shape, slots=len(jobs)))
        waiting = [example for example in waiting if example not in cut[-1].examples]
    laid = [batches.assemble(batch, dict(enumerate(jobs)), slots_of_part=len(jobs)) for batch in cut]

    result: dict[str, Any] = {"shape": shape._asdict(), "matmul_gflops": matmul_rate() / 1e9}
    for name, slots in {"group": len(jobs), "one expert": 1}.items():
        group = Group(
            config, base, GroupPlan(max_experts=slots), layout_for("bottleneck", slots, None), shape
        )
        state = group.init(list(range(slots)))
        own = laid if slots > 1 else [rows._replace(slot=np.zeros_like(rows.slot)) for rows in laid]
        result[name] = measured(step.accumulate(config, "bottleneck"), state.params, base, own)
    for name in ("group", "one expert"):
        print(f"{name}: {result[name]['seconds']:.2f} s a batch")
        for kind, share in result[name]["shares"].items():
            print(f"  {share:5.1%}  {kind}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def measured(accumulate: Any, params: Any, base: Any, laid: list[step.Rows]) -> dict[str, Any]:
    """Returns a batch's seconds, and the share of every kind of operation in what threads were busy with."""
    sums = step.zero_accumulator(params)
    program = accumulate.lower(params, base, laid[0], sums).compile()
    asked = names_of(program.as_text())
    sums = jax.block_until_ready(program(params, base, laid[0], sums))
    start = time.perf_counter()
    for rows in laid:
        sums = program(params, base, rows, sums)
    jax.block_until_ready(sums)
    seconds = (time.perf_counter() - start) / len(laid)
    busy: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        with jax.profiler.trace(place):
            for rows in laid:
                sums = program(params, base, rows, sums)
            jax.block_until_ready(sums)
        traced = next(Path(place).rglob("*.xplane.pb"))
        for plane in jax.profiler.ProfileData.from_file(str(traced)).planes:
            for line in plane.lines:
                for event in line.events:
                    if event.name in asked:
                        busy[kind_of(event.name, asked[event.name])] += event.duration_ns
    return {"seconds": seconds, "shares": {kind: time / busy.total() for kind, time in busy.most_common()}}


def names_of(program: str) -> Mapping[str, str]:
    """Returns operation -> what in the network asked for it, of a compiled program's text."""
    found = {}
    for name, rest in re.findall(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$", program, re.MULTILINE):
        asked = re.search(r'op_name="([^"]*)"', rest)
        found[name] = asked.group(1) if asked else ""
    return found


def kind_of(operation: str, asked: str) -> str:
    if operation.startswith(("while", "call")):
        return "loops themselves"
    if re.match(r"wrapped_broadcast|copy|bitcast_dynamic|dynamic-slice", operation):
        return "keeping and cutting for the scan over layers"
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, asked)), "other")


if __name__ == "__main__":
    main()
