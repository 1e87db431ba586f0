"""Plans of trainings: the experts that train together, the largest batch that fits, and the time of all."""

import heapq
import math
from collections.abc import Mapping, Sequence

from jax.sharding import AbstractMesh, AxisType

from elm_jax.aot.compiler import CompiledProgram, Progress, compile_programs
from elm_jax.aot.slices import Slice
from elm_jax.errors import OutOfMemoryError
from elm_jax.planning import program_specs as specs
from elm_jax.planning.program_specs import TrainingProgramSpec
from elm_jax.planning.records import ProgramPlan, SlicePlan, make_program_plan, resolve_mesh_sizes
from elm_jax.planning.workloads import TrainingWorkload
from elm_jax.training import batch_search, batches, sizing, train
from elm_jax.training.batch_search import Fit, Memory
from elm_jax.training.batches import JobWithLengths, Shape
from elm_jax.training.programs import GroupPlan, Layout


def plan_training(
    load: TrainingWorkload, target: Slice, mesh: Mapping[str, int] | None, progress: Progress | None
) -> SlicePlan:
    """Returns the plan of a training, in which all devices work on one batch."""
    config, measured, platform = load.config, load.measured, target.kind.platform
    defaults = train.mesh_sizes(config.expert.kind, target.devices, len(measured), target.slices)
    sizes = resolve_mesh_sizes(target, mesh or config.batch.mesh or defaults)
    device_mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
    network = sizing.with_dropout(load.network, config)
    shared = sizing.plan_for(config, [each.job for each in measured])
    programs = sizing.programs_for(network, None, shared, device_mesh, platform)
    tried: dict[tuple[Layout, Shape], list[CompiledProgram]] = {}

    def compiled(layout: Layout, shape: Shape, names: Sequence[str]) -> list[CompiledProgram]:
        spec = specs.to_json(TrainingProgramSpec(network, shared, layout, shape))
        return compile_programs(target, sizes, specs.BUILD_FUNCTION, spec, names, progress)

    def whole_steps(layout: Layout, shape: Shape) -> bool:
        return batches.holds_steps(measured, shape, layout.slots, layout.parts)

    def peak_bytes(layout: Layout, shape: Shape) -> int | None:
        whole = whole_steps(layout, shape)
        names = batch_search.batch_programs(whole_steps=whole)
        found = tried[layout, shape] = compiled(layout, shape, names)
        peaks = [each.peak_bytes for each in found]
        beside = batch_search.accumulator_bytes(programs(layout, shape), whole_steps=whole)
        return None if None in peaks else beside + max(each for each in peaks if each is not None)

    memory = Memory(
        fixed_bytes=lambda layout: batch_search.fixed_bytes(programs(layout, sizing.SMALLEST_SHAPE)),
        peak_bytes=peak_bytes,
        limit_bytes=target.kind.memory_limit,
    )
    search = sizing.search_for(network, config, measured, device_mesh, platform, memory)
    try:
        fit = batch_search.largest_fit(search)
    except OutOfMemoryError as error:
        return _unfit_plan(load, target, sizes, shared, search.layouts[-1], tried, str(error))
    names = [each.name for each in programs(fit.layout, fit.shape).all()]
    whole = whole_steps(fit.layout, fit.shape)
    unused = {*batch_search.batch_programs(whole_steps=not whole)} | ({"zero"} if whole else set())
    unused |= set() if config.checkpoint.validate_every else {"evaluate"}
    names = [name for name in names if name not in unused]
    found = compiled(fit.layout, fit.shape, names)
    spec = TrainingProgramSpec(network, shared, fit.layout, fit.shape)
    own = tuple(make_program_plan(each, spec, target, target.devices) for each in found)
    return _training_plan(load, target, sizes, fit, own)


def _training_plan(
    load: TrainingWorkload,
    target: Slice,
    sizes: Mapping[str, int],
    fit: Fit,
    programs: tuple[ProgramPlan, ...],
) -> SlicePlan:
    measured, (slots, parts, _) = load.measured, fit.layout
    filled = batches.fill_ratio(list(measured[:slots]), fit.shape, slots, parts)
    real = sum(
        each.job.steps * each.job.batch_size * (float(each.prompt.mean()) + float(each.target.mean()))
        for each in measured
    )
    # An expert takes at most one step in a batch, so there are at least as many batches as sequential steps.
    count = max(math.ceil(real / (filled * fit.shape.tokens)), _count_sequential_batches(measured, slots))
    seconds = {each.compiled.name: each.compiled.seconds for each in programs}
    refused = [each.compiled.reason for each in programs if each.compiled.reason]
    hours = None
    if not refused and None not in seconds.values():
        known_seconds = {name: value or 0.0 for name, value in seconds.items()}
        of_batch = {
            name for whole in (True, False) for name in batch_search.batch_programs(whole_steps=whole)
        }
        each_batch = sum(value for name, value in known_seconds.items() if name in of_batch)
        each_expert = sum(known_seconds[name] for name in ("init_one", "put_slot", "take_slot"))
        hours = (count * each_batch + len(measured) * each_expert) / 3600
    return SlicePlan(
        what="training",
        slice=target.name,
        devices=target.devices,
        mesh=sizes,
        programs=programs,
        reason=refused[0] if refused else None,
        experts_at_once=slots,
        batch=fit.shape._asdict(),
        batch_tokens=fit.shape.tokens,
        filled=filled,
        memory_filled=fit.fill_ratio,
        batches=count,
        hours=hours,
        assumed=load.assumed,
    )


def _unfit_plan(
    load: TrainingWorkload,
    target: Slice,
    sizes: Mapping[str, int],
    shared: GroupPlan,
    layout: Layout,
    tried: Mapping[tuple[Layout, Shape], list[CompiledProgram]],
    reason: str,
) -> SlicePlan:
    """Returns the plan of a training that does not fit: the smallest batch that was tried, and the reason."""
    shape, found = Shape(0, 0, 0, 0), ()
    if tried:
        (layout, shape), compiled = min(tried.items(), key=lambda item: (item[0][0].slots, item[0][1].tokens))
        spec = TrainingProgramSpec(load.network, shared, layout, shape)
        found = tuple(make_program_plan(each, spec, target, target.devices) for each in compiled)
        reason = next((each.reason for each in compiled if each.reason), reason)
    return SlicePlan(
        what="training",
        slice=target.name,
        devices=target.devices,
        mesh=sizes,
        programs=found,
        reason=reason,
        experts_at_once=layout.slots,
        batch=shape._asdict(),
        batch_tokens=shape.tokens,
        batches=0,
        assumed=load.assumed,
    )


def _count_sequential_batches(measured: Sequence[JobWithLengths], slots: int) -> int:
    """Returns how many batches pass until the last expert ends, if each has a step of every slot."""
    free = [0] * max(1, min(slots, len(measured)))
    for each in measured:
        heapq.heapreplace(free, free[0] + each.job.steps)
    return max(free)
