"""Estimates: what a training would take, before any of it is done."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from elm_jax.aot.devices import peak_flops
from elm_jax.models import flops, shapes
from elm_jax.reporting.formatting import format_duration, format_gigabytes
from elm_jax.reporting.tables import Table
from elm_jax.training import batches, sizing
from elm_jax.training import jobs as job_records
from elm_jax.training.batch_search import Fit
from elm_jax.training.config import TrainConfig
from elm_jax.training.jobs import TrainingJob
from elm_jax.training.programs import GroupPlan
from elm_jax.weights.base_model import Base

ASSUMED_UTILISATION = 0.4  # of the published peak that training is assumed to reach
MATMUL_UTILISATION = 0.5  # the same, of the measured speed of matrix products
MATRIX_SIDE = 2048  # of the matrices that are multiplied to measure it


@dataclass(frozen=True)
class TrainingEstimate:
    """What is to be trained and what it takes.

    Attributes:
        jobs: one for each expert.
        trained: experts among them that the library has already.
        plan: what they share.
        shape: of a batch.
        fill_ratio: share of a batch that is real tokens.
        prompt_tokens: real ones, of all steps that are left.
        answer_tokens: likewise.
        fit: the group and batch, and what they take of a device's memory.
        flops: of all steps that are left.
        flops_per_second: that are assumed to be reached.
        reason: why these.
    """

    jobs: tuple[TrainingJob, ...]
    trained: tuple[str, ...]
    plan: GroupPlan
    shape: batches.Shape
    fill_ratio: float
    prompt_tokens: float
    answer_tokens: float
    fit: Fit
    flops: float
    flops_per_second: float
    reason: str

    @property
    def batches(self) -> float:
        """How many batches all steps take."""
        return (self.prompt_tokens + self.answer_tokens) / (self.fill_ratio * self.shape.tokens)

    @property
    def seconds(self) -> float:
        """How long it takes, compilation left out."""
        return self.flops / self.flops_per_second


def estimate(
    base: Base,
    config: TrainConfig,
    jobs: Sequence[TrainingJob],
    mesh: Mesh | None,
    *,
    trained: Collection[str] = (),
) -> TrainingEstimate:
    """Returns what it takes to train the jobs' experts, but those that are `trained` already."""
    network = sizing.with_dropout(base.config, config)
    fit = sizing.find_fit(network, base.params, config, jobs, mesh)
    plan = sizing.plan_for(config, jobs, fit.layout.slots, config.batch.max_tokens or fit.tokens)
    measured = [batches.measure(job) for job in jobs]
    visits = [0 if job.id in trained else job.steps * job.batch_size for job in jobs]
    prompts = sum(each.prompt.mean() * count for each, count in zip(measured, visits, strict=True))
    answers = sum(each.target.mean() * count for each, count in zip(measured, visits, strict=True))
    attended = job_records.attention_spans(jobs)
    kind = config.expert.kind
    trees = shapes.base_shapes(network), shapes.expert_shapes(network, kind, config.expert.options)
    cost = flops.training_flops(network, kind, *trees, attended)
    devices = [jax.devices()[0]] if mesh is None else list(mesh.devices.flat)
    flops_per_second, reason = _flops_per_second(devices, network.dtype)
    slots, parts, _ = fit.layout
    return TrainingEstimate(
        jobs=tuple(jobs),
        trained=tuple(trained),
        plan=plan,
        shape=fit.shape,
        fill_ratio=batches.fill_ratio(measured[:slots], fit.shape, slots, parts),
        prompt_tokens=float(prompts),
        answer_tokens=float(answers),
        fit=fit,
        flops=cost.prompt * float(prompts) + cost.answer * float(answers),
        flops_per_second=flops_per_second,
        reason=reason,
    )


def tables(estimate: TrainingEstimate) -> list[Table]:
    """Returns an estimate as tables: every expert, and all of them together."""
    rows = [
        (
            job.id,
            f"{len(job.prompts):,}",
            f"{job.steps:,}",
            str(job.batch_size),
            f"{job.config.schedule.peak:g}",
            job.config.schedule.name,
        )
        for job in estimate.jobs
    ]
    header = ("expert", "rows", "steps", "batch", "learning rate", "schedule")
    experts = Table("Experts", header, tuple(rows), "")
    plan, shape, expert = estimate.plan, estimate.shape, estimate.plan.config.expert
    left = [job for job in estimate.jobs if job.id not in estimate.trained]
    trained = f"; {len(estimate.trained):,} trained already" if estimate.trained else ""
    options = ", ".join(f"{name} {value}" for name, value in expert.options.items())
    kind = f"{expert.kind} ({options})" if options else expert.kind
    count, fit = len(estimate.jobs), estimate.fit
    totals = [
        ("experts", f"{count:,} of kind {kind}, {min(plan.max_experts, count)} at a time{trained}"),
        ("steps", f"{sum(job.steps for job in left):,}"),
        ("tokens", f"{estimate.prompt_tokens:,.0f} of prompts and {estimate.answer_tokens:,.0f} of answers"),
        (
            "a batch",
            f"{shape.rows} rows of {shape.prompt} tokens of prompts, up to {shape.segments} in each, and "
            f"{shape.rows // shape.folded} of {shape.target} of answers, "
            f"{100 * estimate.fill_ratio:.0f} % real",
        ),
        ("batches", f"{estimate.batches:,.0f}, saved every {plan.save_every:,}"),
        (
            "memory of a device, GB",
            f"{format_gigabytes(fit.fixed_bytes)} base and experts, "
            f"{format_gigabytes(fit.peak_bytes - fit.fixed_bytes)} a batch, as compiled; "
            f"{format_gigabytes(fit.limit_bytes)} there",
        ),
        ("model FLOPs", f"{estimate.flops:.3g}"),
        ("time, about", format_duration(estimate.seconds)),
    ]
    return [
        experts,
        Table("Training", ("what", "how much"), tuple(totals), f"The time is for {estimate.reason}."),
    ]


def _flops_per_second(devices: Sequence[Any], dtype: str) -> tuple[float, str]:
    """Returns the FLOP/s that training is assumed to reach, and why."""
    peak = peak_flops(devices, dtype)
    if peak is not None:
        return (
            ASSUMED_UTILISATION * peak,
            f"{100 * ASSUMED_UTILISATION:.0f} % of the devices' published {peak:.3g} FLOP/s",
        )
    measured = _matmul_flops_per_second(dtype) * (1 if jax.default_backend() == "cpu" else len(devices))
    return MATMUL_UTILISATION * measured, (
        f"{100 * MATMUL_UTILISATION:.0f} % of the {measured:.3g} FLOP/s that matrix products were just "
        "measured to reach"
    )


def _matmul_flops_per_second(dtype: str) -> float:
    """Measures matrix products on the first device; returns the best of three."""
    square = jnp.ones((MATRIX_SIDE, MATRIX_SIDE), dtype)
    product = jax.jit(jnp.matmul)
    product(square, square).block_until_ready()
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        product(square, square).block_until_ready()
        best = min(best, time.perf_counter() - started)
    return 2 * MATRIX_SIDE**3 / best
