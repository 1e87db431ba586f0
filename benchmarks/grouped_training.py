"""How fast experts train in one group, beside one at a time, one plain batch, PyTorch and PEFT.

Run     python -m benchmarks.grouped_training [--json FILE] [--sides …] [--rounds 5] [--steps 40] …
        wants torch, transformers and peft (the parity extra) for the sides `pytorch` and `peft`
Takes   `--sides grouping pytorch peft --rounds 3` about five minutes on two idle cores; the rest
        as long as nine trainings take
Expect  see benchmarks/RESULTS.md. The goals were twice as fast as eight processes one after another, 0.95 of
        a plain batch's tokens a second, and 1.5 times those of PyTorch and of PEFT

All sides train on the same rows of eight prompts of DREAM and CosmosQA, prompts of 256 tokens at most and
answers of 128, eight rows a step, beside the same frozen random network of T5 1.1 small's shape, in float32
with dropout of 0.1, AdamW and gradients clipped to norm 1. Experts are bottlenecks of width 16 with their
norm scales; for `peft` LoRA of rank 8 on queries and values, on both sides.

    separate_runs  wall time of a process that trains eight experts as a group, against those of eight that
                   train one each: from their start, with imports and compilation, to the last expert's file.
                   Rows are prepared before; what was compiled is not kept. Once each, one after another.
    grouping       tokens a second of the group against those of one expert with batches of 64 of all rows
    pytorch        against transformers' T5 with the same adapters, which trains the experts in turn
    peft           against PEFT's LoRA in the same way

All but the first are in steady state. Every side is warmed up and then trains on `--tokens` real tokens or a
few more; sides take turns so for `--rounds`, and a ratio is the median of the rounds' own ratios. Real tokens
alone count. `flops_share` has the products that they need, as `elm_jax.models.flops` counts them, against the
rate that JAX reaches on large matrices in the same round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import torch_training, training_rows
from benchmarks.rank_scoring import SHARED, matmul_rate, pytorch, ratio
from benchmarks.torch_training import Tally
from elm_jax.axes import PAD
from elm_jax.models import expert_layers as ex
from elm_jax.models import flops
from elm_jax.models.sizes import T5Config, find_config
from elm_jax.models.t5 import init_params
from elm_jax.scoring import scorer
from elm_jax.scoring.buckets import PromptWithChoices
from elm_jax.training import batches, step
from elm_jax.training import jobs as job_records
from elm_jax.training.batches import PendingExample
from elm_jax.training.config import ExpertConfig, TrainConfig, replace_fields
from elm_jax.training.group import Group
from elm_jax.training.jobs import TrainingJob, rows_of_step
from elm_jax.training.programs import GroupPlan, layout_for

SIDES = ("separate_runs", "grouping", "pytorch", "peft")
LORA = {"rank": torch_training.RANK, "projections": ("query", "value")}
Run = Callable[[int], Tally]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--rounds", type=int, default=5, help="how often the sides in steady state are timed")
    parser.add_argument("--tokens", type=int, default=8000, help="real ones, of a side in a round")
    parser.add_argument("--steps", type=int, default=40, help="of every expert of `separate_runs`")
    parser.add_argument("--apart", type=int, help="processes of `separate_runs` that run; all without it")
    parser.add_argument("--data", type=Path, default=SHARED, help="directory of datasets")
    parser.add_argument("--templates", type=Path, default=None, help="PromptSource's")
    parser.add_argument("--size", default="small", help="T5 1.1's size")
    options = parser.parse_args()

    config = find_config(options.size, dropout_rate=0.1)
    params = jax.tree.map(np.asarray, init_params(jax.random.key(0), config))
    rows = training_rows.real_rows(options.data, options.templates, options.steps * training_rows.BATCH)
    result: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        **{name: getattr(options, name) for name in ("size", "rounds", "tokens", "steps")},
        "ratios": {},
    }
    with tempfile.TemporaryDirectory() as place:
        training_rows.write(Path(place), config, params, rows)
        jobs = training_rows.jobs(Path(place), options.steps)
        if "separate_runs" in options.sides:
            merge(result, separate_runs(Path(place), len(jobs), options.steps, options.apart or len(jobs)))
    if set(options.sides) - {"separate_runs"}:
        merge(result, steady(config, params, jobs, options.sides, options.rounds, options.tokens))
    for name, value in result.items():
        print(f"{name:20} {value}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def merge(result: dict[str, Any], more: Mapping[str, Any]) -> None:
    result["ratios"] |= more["ratios"]
    result |= {name: value for name, value in more.items() if name != "ratios"}


def separate_runs(where: Path, experts: int, steps: int, run: int) -> dict[str, Any]:
    """Returns the wall time of one process for all experts, and of one for each of the first so many.

    Those that are not run count as long as those that are, on average.
    """

    def process(*numbers: int) -> float:
        command = [sys.executable, "-m", "benchmarks.training_rows", str(where), "--steps", str(steps)]
        start = time.perf_counter()
        subprocess.run(
            [*command, "--experts", *map(str, numbers)],
            check=True,
            cwd=Path(__file__).parents[1],
            env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
        )
        return time.perf_counter() - start

    together = process(*range(experts))
    apart = [process(number) for number in range(run)]
    return {
        "ratios": {"separate_runs": statistics.mean(apart) * experts / together},
        "seconds": {"group": together, "separate_runs": apart},
    }


def steady(
    config: T5Config, params: Any, jobs: Sequence[TrainingJob], sides: Sequence[str], rounds: int, tokens: int
) -> dict[str, Any]:
    """Returns the rates of all sides in steady state, timed in turns."""
    base = jax.device_put(params)
    plain = TrainingJob(
        "plain",
        [row for job in jobs for row in job.prompts],
        [row for job in jobs for row in job.targets],
        replace_fields(jobs[0].config, {"batch_size": sum(job.batch_size for job in jobs)}),
    )
    runs: dict[str, Run] = {}
    result: dict[str, Any] = {"shapes": {}}
    if {"pytorch", "peft"} & set(sides):
        result["loss"] = losses(config, params, jobs)
    if {"grouping", "pytorch"} & set(sides):
        runs["group"] = grouped(config, base, jobs, GroupPlan(max_experts=len(jobs)), result["shapes"])
    if "grouping" in sides:
        runs["grouping"] = grouped(config, base, [plain], GroupPlan(max_experts=1), result["shapes"])
    if "pytorch" in sides:
        runs["pytorch"], result["pytorch_attention"] = theirs(config, params, jobs, "bottleneck")
    if "peft" in sides:
        plan = GroupPlan(TrainConfig(expert=ExpertConfig("lora", LORA)), len(jobs))
        runs["group_lora"] = grouped(config, base, jobs, plan, result["shapes"])
        runs["peft"], result["peft_attention"] = theirs(config, params, jobs, "lora")

    for run in runs.values():
        run(tokens)
    costs = {kind: cost(config, base, jobs, kind, own) for kind, own in (("bottleneck", {}), ("lora", LORA))}
    found: dict[str, list[tuple[Tally, float]]] = {name: [] for name in runs}
    rates = []
    for _ in range(rounds):
        rates.append(matmul_rate())
        for name, run in runs.items():
            start = time.perf_counter()
            tally = run(tokens)
            found[name].append((tally, time.perf_counter() - start))

    speeds = {name: [tally.real / seconds for tally, seconds in own] for name, own in found.items()}
    result["tokens_per_second"] = {name: statistics.median(own) for name, own in speeds.items()}
    result["real_share"] = {
        name: sum(tally.real for tally, _ in own) / sum(tally.computed for tally, _ in own)
        for name, own in found.items()
    }
    result["matmul_gflops"] = statistics.median(rates) / 1e9
    result["flops_share"] = {
        name: statistics.median(
            costs["lora" if name in ("group_lora", "peft") else "bottleneck"].total(
                tally.prompt, tally.answer
            )
            / seconds
            / rate
            for (tally, seconds), rate in zip(own, rates, strict=True)
        )
        for name, own in found.items()
    }
    result["formula"] = costs["bottleneck"].formula
    beside = {"grouping": "group", "pytorch": "group", "peft": "group_lora"}
    # Of speeds, so the one beside comes second: how many times as fast the group is.
    result["ratios"] = {
        name: ratio(speeds[ours], speeds[name]) for name, ours in beside.items() if name in runs
    }
    return result


def grouped(
    config: T5Config, base: Any, jobs: Sequence[TrainingJob], plan: GroupPlan, shapes: dict[str, Any]
) -> Run:
    """Returns the function that trains a group on so many real tokens, batch by batch as the engine does."""
    count = len(jobs)
    measured = [batches.measure(job) for job in jobs]
    kind = plan.config.expert.kind
    cost = batches.batch_cost(config, kind, jax.default_backend())
    shape = batches.choose_shape(measured, plan.batch_tokens, slots=count, cost=cost)
    group = Group(config, base, plan, layout_for(kind, count, None), shape)
    shapes[f"{kind}, {count}"] = shape._asdict()
    state = group.init([job.seed for job in jobs])
    accumulator = group.zero(state)
    done = [0] * count
    waiting: list[list[PendingExample]] = [[] for _ in jobs]

    def run(tokens: int) -> Tally:
        nonlocal state, accumulator
        tally = Tally()
        while tally.real < tokens:
            for slot, each in enumerate(measured):
                waiting[slot] = waiting[slot] or batches.step_examples(each, slot, done[slot])
            order = sorted(range(count), key=lambda slot: (done[slot], -len(waiting[slot])))
            batch = batches.pack([waiting[slot] for slot in order], shape, slots=count)
            for example in batch.examples:
                waiting[example.slot].remove(example)
                tally = tally.plus(example.prompt, example.target)
            tally = tally.plus(computed=shape.tokens)
            accumulator = group.accumulate(state.params, batch, dict(enumerate(jobs)), accumulator)
            completed = [slot for slot in range(count) if not waiting[slot]]
            if completed:
                active = np.isin(np.arange(count), completed)
                rate = np.where(active, jobs[0].config.schedule.peak, 0).astype(np.float32)
                update = step.SlotUpdates(rate, active, np.array(done, np.int32) + 1)
                state, accumulator, _ = group.update(state, accumulator, update)
                for slot in completed:
                    done[slot] += 1
        jax.block_until_ready((state, accumulator))
        return tally

    return run


def theirs(config: T5Config, params: Any, jobs: Sequence[TrainingJob], kind: str) -> tuple[Run, str]:
    """Returns PyTorch's, and the attention that it was fastest with."""
    trainer, attention = torch_training.fastest(lambda: pytorch(config, params), jobs, kind)
    return trainer.run, attention


def losses(config: T5Config, params: Any, jobs: Sequence[TrainingJob]) -> dict[str, float]:
    """Returns the base's loss on the first rows of all jobs, ours and PyTorch's, which have to be one."""
    import torch

    chosen = [(job, row) for job in jobs for row in rows_of_step(job, 0)]
    rows = [PromptWithChoices(job.prompts[row], [job.targets[row]]) for job, row in chosen]
    scores = np.concatenate(scorer.score_rows(config, params, rows))
    prompts = torch.from_numpy(torch_training.padded([row.prompt for row in rows]))
    targets = torch.from_numpy(torch_training.padded([row.answers[0] for row in rows]))
    with torch.no_grad():
        wanted = targets.masked_fill(targets == PAD, -100)
        theirs = pytorch(config, params)(input_ids=prompts, attention_mask=prompts != PAD, labels=wanted).loss
    found = {"ours": -float(scores.sum()) / int((targets != PAD).sum()), "pytorch": float(theirs)}
    assert abs(found["ours"] - found["pytorch"]) < 1e-4 * found["pytorch"], found
    return found


def cost(
    config: T5Config, base: Any, jobs: Sequence[TrainingJob], kind: str, options: Mapping[str, Any]
) -> flops.FlopsPerToken:
    """Returns what a token costs beside the base in an expert of that kind."""
    expert = jax.eval_shape(lambda key: ex.init_expert(kind, key, base, options), jax.random.key(0))
    return flops.training_flops(config, kind, base, expert, job_records.attention_spans(jobs))


if __name__ == "__main__":
    main()
