"""Plans of trainings: the group, the largest batch that fits, and what all batches take."""

import heapq
import math
from collections.abc import Mapping, Sequence

from jax.sharding import AbstractMesh, AxisType

from elm_jax.aot.compiler import Compiled, Progress, compile_programs
from elm_jax.aot.slices import Slice
from elm_jax.errors import OutOfMemoryError
from elm_jax.planning import work as works
from elm_jax.planning.records import ProgramPlan, SlicePlan, mesh_sizes, program_plan
from elm_jax.planning.work import TrainingWork
from elm_jax.planning.workload import TrainingLoad
from elm_jax.training import batch_search, batches, sizing, train
from elm_jax.training.batch_search import Fit, Memory
from elm_jax.training.batches import MeasuredJob, Shape
from elm_jax.training.programs import GroupPlan, Layout


def plan_training(
    load: TrainingLoad, of: Slice, mesh: Mapping[str, int] | None, progress: Progress | None
) -> SlicePlan:
    config, measured, platform = load.config, load.measured, of.kind.platform
    kind = config.expert.kind
    asked = mesh or config.batch.mesh
    sizes = mesh_sizes(of, asked or train.mesh_sizes(kind, of.devices, len(measured), of.slices))
    on = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
    network = sizing.with_dropout(load.network, config)
    shared = sizing.plan_for(config, [each.job for each in measured])
    programs = sizing.programs_for(network, None, shared, on, platform)
    tried: dict[tuple[Layout, Shape], list[Compiled]] = {}

    def compiled(layout: Layout, shape: Shape, names: Sequence[str]) -> list[Compiled]:
        told = works.to_json(TrainingWork(network, shared, layout, shape))
        return compile_programs(of, sizes, works.BUILD, told, names, progress)

    def peak_bytes(layout: Layout, shape: Shape) -> int | None:
        found = tried[layout, shape] = compiled(layout, shape, ("accumulate", "update"))
        peaks = [each.peak_bytes for each in found]
        return None if None in peaks else max(each for each in peaks if each is not None)

    memory = Memory(
        held_bytes=lambda layout: batch_search.held_bytes(programs(layout, sizing.SMALLEST)),
        peak_bytes=peak_bytes,
        limit_bytes=of.kind.memory_limit,
    )
    search = sizing.search_for(network, config, measured, on, platform, memory)
    try:
        fit = batch_search.largest_fit(search)
    except OutOfMemoryError as error:
        return _not_trained(load, of, sizes, shared, search.layouts[-1], tried, str(error))
    names = [each.name for each in programs(fit.layout, fit.shape).all()]
    if not config.checkpoint.validate_every:
        names.remove("evaluate")
    found = compiled(fit.layout, fit.shape, names)
    work = TrainingWork(network, shared, fit.layout, fit.shape)
    own = tuple(program_plan(each, work, of, of.devices) for each in found)
    return _training_plan(load, of, sizes, fit, own)


def _training_plan(
    load: TrainingLoad, of: Slice, sizes: Mapping[str, int], fit: Fit, programs: tuple[ProgramPlan, ...]
) -> SlicePlan:
    measured, (slots, parts, _) = load.measured, fit.layout
    filled = batches.fill_ratio(list(measured[:slots]), fit.shape, slots, parts)
    real = sum(
        each.job.steps * each.job.batch_size * (float(each.prompt.mean()) + float(each.target.mean()))
        for each in measured
    )
    # An expert moves once a batch at most, so there are never fewer batches than steps in a row.
    count = max(math.ceil(real / (filled * fit.shape.tokens)), _sequential(measured, slots))
    seconds = {each.compiled.name: each.compiled.seconds for each in programs}
    refused = [each.compiled.reason for each in programs if each.compiled.reason]
    hours = None
    if not refused and None not in seconds.values():
        known_seconds = {name: value or 0.0 for name, value in seconds.items()}
        each_batch = known_seconds["accumulate"] + known_seconds["update"]
        each_expert = sum(known_seconds[name] for name in ("init_one", "put_slot", "take_slot"))
        hours = (count * each_batch + len(measured) * each_expert) / 3600
    return SlicePlan(
        what="training",
        slice=of.name,
        devices=of.devices,
        mesh=sizes,
        programs=programs,
        fits=not refused,
        reason=refused[0] if refused else None,
        experts_at_once=slots,
        batch=fit.shape._asdict(),
        batch_tokens=fit.shape.tokens,
        filled=filled,
        memory_filled=fit.fill_ratio,
        batches=count,
        hours=hours,
        device_hours=None if hours is None else hours * of.devices,
        assumed=load.assumed,
    )


def _not_trained(
    load: TrainingLoad,
    of: Slice,
    sizes: Mapping[str, int],
    shared: GroupPlan,
    layout: Layout,
    tried: Mapping[tuple[Layout, Shape], list[Compiled]],
    reason: str,
) -> SlicePlan:
    """Returns the plan of what does not fit: the smallest batch that was tried, and why it was refused."""
    shape, found = Shape(0, 0, 0, 0), ()
    if tried:
        (layout, shape), compiled = min(tried.items(), key=lambda item: (item[0][0].slots, item[0][1].tokens))
        work = TrainingWork(load.network, shared, layout, shape)
        found = tuple(program_plan(each, work, of, of.devices) for each in compiled)
        reason = next((each.reason for each in compiled if each.reason), reason)
    return SlicePlan(
        what="training",
        slice=of.name,
        devices=of.devices,
        mesh=sizes,
        programs=found,
        fits=False,
        reason=reason,
        experts_at_once=layout.slots,
        batch=shape._asdict(),
        batch_tokens=shape.tokens,
        filled=None,
        memory_filled=None,
        batches=0,
        hours=None,
        device_hours=None,
        assumed=load.assumed,
    )


def _sequential(measured: Sequence[MeasuredJob], slots: int) -> int:
    """Returns the batches until the last expert is done, if every batch moved all experts in slots."""
    free = [0] * max(1, min(slots, len(measured)))
    for each in measured:
        heapq.heapreplace(free, free[0] + each.job.steps)
    return max(free)
