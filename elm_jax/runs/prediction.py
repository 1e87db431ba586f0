"""Predictions: what a workload takes on a slice, in memory, time, traffic and device-hours.

Training is laid out as `elm train` lays it out: experts apart as far as they go, full ones split, as many at
once and batches as large as memory holds (`room`). An expert moves once a batch at most, so there are never
fewer batches than steps one after another.
"""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import jax

from elm_jax.engine.batches import MOST_SEGMENTS, WELL_FILLED
from elm_jax.errors import UserError
from elm_jax.models import sharding
from elm_jax.runs import plan, roofline, room, stacks, train
from elm_jax.runs.plan import Need, Work
from elm_jax.runs.rates import Rates, rates_of
from elm_jax.runs.roofline import Batch, Seconds
from elm_jax.runs.slices import GPUS, Slice
from elm_jax.runs.workload import Evaluation, Expert, Training

GPU_TAKEN = 0.75  # of a GPU's memory, which is what JAX takes unless it is told otherwise
SCORED_FILLED = 0.9  # of what is scored that is real; see benchmarks/RESULTS.md, rank scoring
AT_ONCE = 64  # experts that are held to score with, at most: `scores.score`
DISK = 1e9  # bytes a second that a host writes or reads, where no rate is given
SLACK = 1.15  # room for answers beside prompts in a packed row, as `engine.batches` has it
FOLDED = 4  # rows of prompts whose answers stand in one, at most


@dataclass(frozen=True)
class Trained:
    """Training on a slice. Bytes and seconds are of one device and one batch where nothing else is said."""

    slice: Slice
    mesh: Mapping[str, int]
    fits: str  # "yes", "perhaps" or "no"
    given: bool  # whether the mesh is other than the one that `elm train` takes by itself
    places: int = 0  # experts at once
    tokens: int = 0  # of a batch, all devices together
    filled: float = 0.0  # share of them that is real
    need: Need | None = None
    between: int = 0  # of what it needs: that between the layers, as the network computes it
    memory: int = 0  # there for JAX
    cost: Batch | None = None
    each: Seconds | None = None
    batches: int = 0
    steps: int = 0
    input: int = 0  # bytes from all hosts
    checkpoint: int = 0  # bytes, of all devices
    saves: int = 0
    writing: float = 0.0  # seconds that a checkpoint takes to be written, in the background

    @property
    def seconds(self) -> float:
        """How long all of it takes; compilation and the host's own work are left out."""
        return self.batches * self.each.together if self.each else math.inf

    @property
    def device_hours(self) -> float:
        """Devices times hours."""
        return self.slice.devices * self.seconds / 3600


@dataclass(frozen=True)
class Scored:
    """An evaluation on a slice, where a process of every host scores its share on all of its devices."""

    slice: Slice
    fits: str
    held: int  # experts at once
    need: Need
    memory: int
    cost: Batch
    each: Seconds
    batches: float  # of all processes
    read: int  # bytes of experts that every process reads
    reading: float  # seconds of that

    @property
    def seconds(self) -> float:
        """How long it takes."""
        return self.batches * self.each.together / self.slice.devices + self.reading

    @property
    def device_hours(self) -> float:
        """Devices times hours."""
        return self.slice.devices * self.seconds / 3600


def trained(
    load: Training,
    on: Slice,
    mesh: Mapping[str, int] | None = None,
    *,
    disk: float = DISK,
    rates: Rates | None = None,
) -> Trained:
    """Returns what training takes on a slice; on a mesh of these sizes where they are given.

    Where not one expert fits the mesh that `elm train` takes by itself, it is the one with the least `fsdp`
    on which one does. `disk` is how many bytes a second a host writes.
    """
    rates = rates or rates_of(on)
    memory = available(on)
    asked = mesh if mesh is not None else load.mesh
    found = _laid_out(load, on, memory, asked)
    if found is None:
        sizes = _sizes(load, on, asked, 1 if load.budget.kind != "full" else on.devices)
        return Trained(on, sizes, "no", asked is not None, memory=memory)
    sizes, places, tokens = found
    work, filled = _batch(load, sizes, places, tokens)
    need = plan.need(work, sizes)
    cost = roofline.training(work, sizes)
    between = need.activations_remat if load.network.remat else need.activations
    real = sum(each.tokens for each in load.experts)
    rounds = max(math.ceil(round(real / (filled * work.train_tokens), 6)), _sequential(load.experts, places))
    by_device = need.state + need.gradients
    apart = 1 if load.budget.kind != "full" else sizes["fsdp"] * sizes["tensor"]
    checkpoint = by_device * sizes["expert"] * apart
    hosts = -(-on.devices // rates.host)
    rows = work.train_tokens // (work.prompt + work.answer)
    every = load.budget.save_every or 1000
    return Trained(
        slice=on,
        mesh=sizes,
        fits=plan.verdict(plan.held(need), between, memory),
        given=sizes != _sizes(load, on, None, 1),
        places=places,
        tokens=work.train_tokens,
        filled=filled,
        need=need,
        between=between,
        memory=memory,
        cost=cost,
        each=cost.seconds(rates),
        batches=rounds,
        steps=sum(each.steps for each in load.experts),
        input=4 * rows * (2 * work.prompt + 2 * work.answer + 3 * work.segments),
        checkpoint=checkpoint,
        saves=rounds // every,
        writing=checkpoint / (disk * hosts),
    )


def scored(load: Evaluation, on: Slice, *, disk: float = DISK, rates: Rates | None = None) -> Scored:
    """Returns what an evaluation takes on a slice; `disk` is how many bytes a second a host reads."""
    rates = rates or rates_of(on)
    memory = available(on)
    one: dict[str, int] = dict.fromkeys(sharding.AXES, 1)
    work = Work(
        load.network,
        kind=load.kind,
        options=load.options,
        prompt=load.longest_prompt,
        answer=load.longest_answer,
        batch_tokens=load.batch_tokens,
    )
    _, expert = plan.shapes(work)
    own = 4 * sum(leaf.size for leaf in jax.tree.leaves(expert))
    held = max(1, min(AT_ONCE, load.experts, int(stacks.SHARE * memory) // own - 1))
    held = 1 if load.kind == "full" else held
    need = plan.need(replace(work, experts=held + 1), one)
    # Rows stand in buckets of like length, so a batch of rows of mean length stands for all of them.
    mean = replace(work, experts=held + 1, prompt=round(load.prompt), answer=max(1, round(load.answer)))
    cost = roofline.scoring(mean)
    computed = load.passes * (load.prompt + load.answer) / SCORED_FILLED
    real = max(1, mean.batch_tokens // (mean.prompt + mean.answer)) * (mean.prompt + mean.answer)
    oracle = load.scorers > load.experts
    read = own * (load.experts if oracle else load.scorers - 1)
    return Scored(
        slice=on,
        fits=plan.verdict(need.base + need.experts, need.scoring, memory),
        held=held,
        need=need,
        memory=memory,
        cost=cost,
        each=cost.seconds(rates),
        batches=computed / real,
        read=read,
        reading=read / disk,
    )


def available(on: Slice) -> int:
    """Returns the bytes of a device that JAX takes."""
    return int(on.memory * (GPU_TAKEN if on.kind in GPUS else 1.0))


def _sizes(load: Training, on: Slice, asked: Mapping[str, int] | None, fsdp: int) -> dict[str, int]:
    """Returns the sizes of the mesh: those that are asked for, or those of `train.mesh_of`."""
    ones: dict[str, int] = dict.fromkeys(sharding.AXES, 1)
    if asked is not None:
        rest = 1 if -1 in asked.values() else -1
        return ones | sharding.fitted(on.devices, **({"data": rest} | dict(asked)))
    if load.budget.kind == "full":
        return ones | {"fsdp": on.devices}
    return ones | {"expert": on.devices // fsdp, "fsdp": fsdp}


def _laid_out(
    load: Training, on: Slice, memory: int, asked: Mapping[str, int] | None
) -> tuple[dict[str, int], int, int] | None:
    """Returns the mesh, the experts at once and the most tokens of a batch; None where nothing fits."""
    budget = load.budget
    work = Work(
        load.network,
        kind=budget.kind,
        options=dict(budget.options),
        prompt=max(each.longest_prompt for each in load.experts),
        answer=max(each.longest_answer for each in load.experts),
        train_tokens=budget.batch_tokens or train.TRAIN_TOKENS,
        optimizer=budget.optimizer,
    )
    alone = asked is not None or budget.kind == "full"
    for fsdp in (1,) if alone else (by for by in range(1, on.devices + 1) if not on.devices % by):
        sizes = _sizes(load, on, asked, fsdp)
        most = budget.places or min(train.MOST_PLACES, len(load.experts))
        try:
            places, tokens = room.fit(work, memory, sizes, most_places=most)
        except UserError:
            continue
        parts = sizes["expert"]
        places = -(-min(budget.places or places, len(load.experts)) // parts) * parts
        return sizes, parts if budget.kind == "full" else places, budget.batch_tokens or tokens
    return None


def _batch(load: Training, mesh: Mapping[str, int], places: int, most_tokens: int) -> tuple[Work, float]:
    """Returns the work of one batch and the share of it that is real.

    Rows are as long as the longest prompt. There are no more of them than what the experts of a part of the
    mesh offer in a step fills, but one for every device; parts without an expert have rows all the same.
    """
    experts, split, parts = load.experts, sharding.row_parts(mesh), mesh["expert"]
    examples = sum(each.steps * each.batch_size for each in experts)
    prompt = sum(each.steps * each.batch_size * each.prompt for each in experts) / examples
    answer = sum(each.steps * each.batch_size * each.answer for each in experts) / examples
    longest = max(each.longest_prompt for each in experts)
    widest = max(each.longest_answer for each in experts)
    wide = math.ceil(max(SLACK * answer * longest / prompt, widest / FOLDED))
    busy = min(parts, len(experts))  # parts that have an expert
    at_once = min(places, len(experts))
    offered = sum(each.tokens for each in experts) / sum(each.steps for each in experts) * at_once / busy
    devices, row = split // parts, longest + wide  # of a part
    most = max(1, most_tokens // split // row)  # rows of a device
    rows = min(most, math.ceil(offered / WELL_FILLED / devices / row))
    work = Work(
        load.network,
        kind=load.budget.kind,
        options=dict(load.budget.options),
        group=places,
        train_tokens=rows * split * row,
        prompt=longest,
        answer=wide,
        segments=max(1, min(MOST_SEGMENTS, math.ceil(1.3 * longest / prompt))),
        optimizer=load.budget.optimizer,
    )
    return work, min(WELL_FILLED, offered / (rows * devices * row)) * busy / parts


def _sequential(experts: Sequence[Expert], places: int) -> int:
    """Returns the batches until the last expert is done, if every batch moved all that stand at a place.

    >>> of = lambda steps: Expert("", 1, steps, 1, 1, 1, 1.0, 1.0)
    >>> _sequential([of(3), of(5), of(4)], 2)
    7
    """
    free = [0] * max(1, min(places, len(experts)))
    for each in sorted(experts, key=lambda each: (-each.longest_prompt, each.id)):
        heapq.heapreplace(free, free[0] + each.steps)
    return max(free)
