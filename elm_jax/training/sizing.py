"""Sizing: how many experts train at once and how large their batches are, on the devices that are here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from jax.sharding import AbstractMesh, Mesh

from elm_jax.aot.program import get_platform
from elm_jax.models.sizes import T5Config
from elm_jax.records import Params
from elm_jax.session import devices
from elm_jax.training import batch_search, batches
from elm_jax.training.batch_search import Fit, Search
from elm_jax.training.batches import Known, Shape
from elm_jax.training.config import Budget
from elm_jax.training.jobs import Job
from elm_jax.training.programs import GroupPrograms, Layout, Plan, group_programs, layout_for

MOST_PLACES = 64  # experts at once, where memory would hold more


def plan_of(budget: Budget, jobs: Sequence[Job], places: int, tokens: int) -> Plan:
    """Returns what the experts of a training share."""
    return Plan(
        kind=budget.kind,
        options=_plain(budget.options),
        optimizer=budget.optimizer,
        clip=budget.clip,
        z_loss=budget.z_loss,
        label_smoothing=budget.label_smoothing,
        places=places,
        batch_tokens=tokens,
        save_every=budget.save_every or max(25, max(job.steps for job in jobs) // 8),
        validate_every=budget.validate_every,
        keep=budget.keep,
    )


def fit(config: T5Config, base: Params, budget: Budget, jobs: Sequence[Job], mesh: Mesh | None) -> Fit:
    """Returns the group and the batch that fit the devices at hand, by compiling what they would run.

    Raises:
        OutOfMemoryError: not even one row on a device fits.
    """
    programs = programs_for(config, base, plan_of(budget, jobs, 1, 1), mesh)
    return batch_search.largest_fit(
        search_of(
            config,
            budget,
            [batches.known(job) for job in jobs],
            mesh,
            platform=get_platform(mesh),
            held_bytes=lambda layout: batch_search.held_bytes(programs(layout, SMALLEST)),
            peak_bytes=lambda layout, shape: batch_search.peak_bytes(programs(layout, shape)),
            limit_bytes=devices.device_memory(),
        )
    )


SMALLEST = Shape(1, 8, 8, 1)
"""Of a batch, where what is asked does not depend on it."""


def programs_for(
    config: T5Config,
    base: Any,
    plan: Plan,
    mesh: Mesh | AbstractMesh | None,
    platform: str | None = None,
) -> Callable[[Layout, Shape], GroupPrograms]:
    """Returns the programs of a training by layout and batch; arguments are those of `group_programs`."""

    @lru_cache(maxsize=16)
    def programs(layout: Layout, shape: Shape) -> GroupPrograms:
        return group_programs(config, plan, layout, shape, base=base, mesh=mesh, platform=platform)

    return programs


def search_of(
    config: T5Config,
    budget: Budget,
    known: Sequence[Known],
    mesh: Mesh | AbstractMesh | None,
    *,
    platform: str,
    held_bytes: Callable[[Layout], int],
    peak_bytes: Callable[[Layout, Shape], int | None],
    limit_bytes: int,
) -> Search:
    """Returns what to search for a training's group and batch; what the budget says is not searched."""
    cost = batches.batch_cost(config, budget.kind, platform)
    places = budget.places or min(MOST_PLACES, len(known))
    layout = layout_for(budget.kind, places, mesh)

    @lru_cache(maxsize=64)
    def shape_for(layout: Layout, tokens: int) -> Shape:
        return batches.shape_for(
            known,
            budget.batch_tokens or tokens,
            places=layout.places,
            parts=layout.parts,
            multiple=layout.row_parts,
            cost=cost,
        )

    return Search(
        layouts=batch_search.layouts_for(layout, fixed=budget.places is not None),
        shape_for=shape_for,
        held_bytes=held_bytes,
        peak_bytes=peak_bytes,
        limit_bytes=limit_bytes,
        token_bytes=batch_search.token_bytes(config, layout),
        most_tokens=batch_search.MOST_TOKENS.get(platform),
    )


def with_dropout(config: T5Config, budget: Budget) -> T5Config:
    """Returns the network as it trains."""
    return replace(config, dropout_rate=budget.dropout)


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
