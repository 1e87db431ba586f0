"""Forecast: what a training would take, said before any of it is done."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from elm_jax.aot.devices import peak_flops
from elm_jax.models import flops, shapes
from elm_jax.reporting.tables import Table
from elm_jax.training import batches, sizing
from elm_jax.training.batch_search import Fit
from elm_jax.training.config import Budget
from elm_jax.training.jobs import Job
from elm_jax.training.programs import Plan
from elm_jax.weights.base import Base

UTILISATION = 0.4  # of the published peak that training is taken to reach, where it was not measured
OF_PRODUCTS = 0.5  # the same, of the rate at which it was seen to multiply matrices
SIDE = 2048  # of the matrices that are multiplied to see it


@dataclass(frozen=True)
class Forecast:
    """What is to be trained and what it takes."""

    jobs: tuple[Job, ...]
    done: tuple[str, ...]  # experts among them that are trained already
    plan: Plan
    shape: batches.Shape
    filled: float  # share of a batch that is real tokens
    prompt_tokens: float  # real ones, of all steps that are left
    answer_tokens: float
    fit: Fit  # the group and batch, and what they take of a device's memory
    flops: float
    rate: float  # FLOP/s that are taken to be reached
    reason: str  # why these

    @property
    def batches(self) -> float:
        """How many batches it is cut into."""
        return (self.prompt_tokens + self.answer_tokens) / (self.filled * self.shape.tokens)

    @property
    def seconds(self) -> float:
        """How long it takes, compilation left out."""
        return self.flops / self.rate


def forecast(
    base: Base, budget: Budget, jobs: Sequence[Job], mesh: Mesh | None, *, done: Collection[str] = ()
) -> Forecast:
    """Returns what it takes to train these jobs' experts beside a base, but those that are `done` already."""
    config = sizing.with_dropout(base.config, budget)
    fit = sizing.fit(config, base.params, budget, jobs, mesh)
    plan = sizing.plan_of(budget, jobs, fit.layout.places, budget.batch_tokens or fit.tokens)
    given, shape = [batches.known(job) for job in jobs], fit.shape
    visits = [0 if each.job.id in done else each.job.steps * each.job.batch_size for each in given]
    prompts = sum(each.prompt.mean() * count for each, count in zip(given, visits, strict=True))
    answers = sum(each.target.mean() * count for each, count in zip(given, visits, strict=True))
    seen = flops.attention_spans(
        (row for job in jobs for row in job.prompts), (row for job in jobs for row in job.targets)
    )
    trees = shapes.base_shapes(config), shapes.expert_shapes(config, budget.kind, budget.options)
    cost = flops.training_flops(config, plan.kind, *trees, seen)
    devices = [jax.devices()[0]] if mesh is None else list(mesh.devices.flat)
    rate, reason = _rate(devices, config.dtype)
    places, parts, _ = fit.layout
    return Forecast(
        jobs=tuple(jobs),
        done=tuple(done),
        plan=plan,
        shape=shape,
        filled=batches.filled(given[:places], shape, places, parts),
        prompt_tokens=float(prompts),
        answer_tokens=float(answers),
        fit=fit,
        flops=cost.prompt * float(prompts) + cost.answer * float(answers),
        rate=rate,
        reason=reason,
    )


def tables(found: Forecast) -> list[Table]:
    """Returns a forecast as tables: every expert, and all of them together."""
    rows = [
        (
            job.id,
            f"{len(job.prompts):,}",
            f"{job.steps:,}",
            str(job.batch_size),
            f"{job.rate:g}",
            job.schedule,
        )
        for job in found.jobs
    ]
    experts = Table("Experts", ("expert", "rows", "steps", "batch", "rate", "schedule"), tuple(rows), "")
    plan, shape = found.plan, found.shape
    left = [job for job in found.jobs if job.id not in found.done]
    trained = f"; {len(found.done):,} trained already" if found.done else ""
    options = ", ".join(f"{name} {value}" for name, value in plan.options.items())
    kind = f"{plan.kind} ({options})" if options else plan.kind
    told = [
        (
            "experts",
            f"{len(found.jobs):,} of kind {kind}, {min(plan.places, len(found.jobs))} at a time{trained}",
        ),
        ("steps", f"{sum(job.steps for job in left):,}"),
        ("tokens", f"{found.prompt_tokens:,.0f} of prompts and {found.answer_tokens:,.0f} of answers"),
        (
            "a batch",
            f"{shape.rows} rows of {shape.prompt} tokens of prompts, up to {shape.segments} in each, and "
            f"{shape.rows // shape.folded} of {shape.target} of answers, {100 * found.filled:.0f} % real",
        ),
        ("batches", f"{found.batches:,.0f}, saved every {plan.save_every:,}"),
        (
            "memory of a device, GB",
            f"{gb(found.fit.held_bytes)} base and experts, {gb(found.fit.peak_bytes - found.fit.held_bytes)} "
            f"a batch, as compiled; {gb(found.fit.limit_bytes)} there",
        ),
        ("model FLOPs", f"{found.flops:.3g}"),
        ("time, about", duration(found.seconds)),
    ]
    return [experts, Table("Training", ("what", "how much"), tuple(told), f"The time is for {found.reason}.")]


def _rate(devices: Sequence[Any], dtype: str) -> tuple[float, str]:
    """Returns the FLOP/s that training is taken to reach, and why."""
    peak = peak_flops(devices, dtype)
    if peak is not None:
        return UTILISATION * peak, f"{100 * UTILISATION:.0f} % of the devices' published {peak:.3g} FLOP/s"
    seen = _products(dtype) * (1 if jax.default_backend() == "cpu" else len(devices))
    return OF_PRODUCTS * seen, (
        f"{100 * OF_PRODUCTS:.0f} % of the {seen:.3g} FLOP/s that matrix products were just seen to reach"
    )


def _products(dtype: str) -> float:
    """Returns the FLOP/s of products of matrices on the first device, the best of three."""
    square = jnp.ones((SIDE, SIDE), dtype)
    product = jax.jit(jnp.matmul)
    product(square, square).block_until_ready()
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        product(square, square).block_until_ready()
        best = min(best, time.perf_counter() - started)
    return 2 * SIDE**3 / best


def duration(seconds: float) -> str:
    """Returns a duration a reader can hold in mind.

    >>> duration(59), duration(5400), duration(200000)
    ('59 s', '1 h 30 min', '2 d 7 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def gb(count: int) -> str:
    """Returns bytes in GB (10⁹ bytes), as tables and sentences have them."""
    return f"{count / 1e9:.2f}" if count < 100e9 else f"{count / 1e9:.0f}"
