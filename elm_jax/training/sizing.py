"""Sizing: how many experts train at once and how large their batches are, on the devices that are here."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from jax.sharding import AbstractMesh, Mesh

from elm_jax.aot.program import get_platform
from elm_jax.models.sizes import T5Config
from elm_jax.records import Params
from elm_jax.session import devices
from elm_jax.training import batch_search, batches
from elm_jax.training.batch_search import BatchSearch, Fit, Memory
from elm_jax.training.batches import JobWithLengths, Shape
from elm_jax.training.config import TrainConfig
from elm_jax.training.jobs import TrainingJob
from elm_jax.training.programs import GroupPlan, GroupPrograms, Layout, group_programs, layout_for

MOST_EXPERTS = 64  # at once, where memory would hold more


def plan_for(
    config: TrainConfig, jobs: Sequence[TrainingJob], max_experts: int = 1, batch_tokens: int = 1
) -> GroupPlan:
    """Returns what the experts of a training share."""
    save_every = config.checkpoint.save_every or max(25, max(job.steps for job in jobs) // 8)
    return GroupPlan(config, max_experts, batch_tokens, save_every)


def find_fit(
    network: T5Config, base: Params, config: TrainConfig, jobs: Sequence[TrainingJob], mesh: Mesh | None
) -> Fit:
    """Returns the group and the batch that fit the devices at hand, by compiling what they would run.

    Raises:
        OutOfMemoryError: not even one row on a device fits.
    """
    programs = programs_for(network, base, plan_for(config, jobs), mesh)
    measured = [batches.measure(job) for job in jobs]
    memory = Memory(
        fixed_bytes=lambda layout: batch_search.fixed_bytes(programs(layout, SMALLEST_SHAPE)),
        peak_bytes=lambda layout, shape: batch_search.peak_bytes(
            programs(layout, shape),
            whole_steps=batches.holds_steps(measured, shape, layout.slots, layout.parts),
        ),
        limit_bytes=devices.device_memory(),
    )
    return batch_search.largest_fit(search_for(network, config, measured, mesh, get_platform(mesh), memory))


SMALLEST_SHAPE = Shape(1, 8, 8, 1)
"""Of a batch, where what is asked does not depend on it."""


def programs_for(
    network: T5Config,
    base: Any,
    plan: GroupPlan,
    mesh: Mesh | AbstractMesh | None,
    platform: str | None = None,
) -> Callable[[Layout, Shape], GroupPrograms]:
    """Returns the programs of a training by layout and batch; arguments are those of `group_programs`."""

    @lru_cache(maxsize=16)
    def programs(layout: Layout, shape: Shape) -> GroupPrograms:
        return group_programs(network, plan, layout, shape, base=base, mesh=mesh, platform=platform)

    return programs


def search_for(
    network: T5Config,
    config: TrainConfig,
    measured: Sequence[JobWithLengths],
    mesh: Mesh | AbstractMesh | None,
    platform: str,
    memory: Memory,
) -> BatchSearch:
    """Returns what to search for a training's group and batch; what the config says is not searched."""
    kind, batch = config.expert.kind, config.batch
    cost = batches.batch_cost(network, kind, platform)
    slots = batch.max_experts or min(MOST_EXPERTS, len(measured))
    layout = layout_for(kind, slots, mesh)

    @lru_cache(maxsize=64)
    def shape_for(layout: Layout, tokens: int) -> Shape:
        return batches.choose_shape(
            measured,
            batch.max_tokens or tokens,
            slots=layout.slots,
            parts=layout.parts,
            multiple=layout.row_parts,
            cost=cost,
        )

    return BatchSearch(
        layouts=batch_search.layouts_for(layout, fixed=batch.max_experts is not None),
        shape_for=shape_for,
        memory=memory,
        token_bytes=batch_search.token_bytes(network, layout),
        most_tokens=batch_search.MOST_TOKENS.get(platform),
    )


def with_dropout(network: T5Config, config: TrainConfig) -> T5Config:
    """Returns the network as it trains."""
    return replace(network, dropout_rate=config.expert.dropout)
