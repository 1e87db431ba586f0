"""Plans: a workload on a slice, each of its programs compiled for it, and what all of it takes.

The largest batch is found by compiling. Seconds are the compiler's cycles over the clock: a ruler between
programs, and no measurement.
"""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from elm_jax.aot.compiler import Compiled, Progress, compile_programs
from elm_jax.aot.slices import Slice
from elm_jax.engine import batch_search, batches
from elm_jax.engine.batch_search import Fit
from elm_jax.engine.batches import Known, Shape
from elm_jax.engine.embed import ON_ACCELERATOR
from elm_jax.engine.programs import Layout, Plan
from elm_jax.errors import OutOfMemoryError
from elm_jax.library.keys import KEYS_PER_EXPERT
from elm_jax.models import meshes, shapes
from elm_jax.planning import work as works
from elm_jax.planning.work import EmbeddingWork, GenerationWork, ScoringWork, SearchWork, TrainingWork, Work
from elm_jax.planning.workload import ScoringLoad, TrainingLoad
from elm_jax.runs import sizing, train
from elm_jax.runs.stacks import AT_ONCE, SHARE
from elm_jax.scoring import buckets

ROW_STEP = 8  # prompts are padded to multiples of it


@dataclass(frozen=True)
class ProgramPlan:
    """A program as compiled, beside what its mathematics asks for.

    Attributes:
        compiled: what the compiler says, of one device.
        model_flops: by the formula, of one device; None where the program has no products to speak of.
        mfu: model FLOPs over what the device could do in the program's seconds.
    """

    compiled: Compiled
    model_flops: float | None
    mfu: float | None

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON has them."""
        return self.compiled.to_json() | {"model_flops": self.model_flops, "mfu": self.mfu}


@dataclass(frozen=True)
class SlicePlan:
    """What a workload takes on a slice.

    Attributes:
        what: "training" or "evaluation".
        slice: the slice's name.
        devices: of the slice.
        mesh: sizes by axis.
        programs: each of them as compiled.
        fits: whether all of them do.
        reason: why not, in the compiler's words; None if they do.
        experts_at_once: that train together, or are held to score with.
        batch: its shape.
        batch_tokens: of all devices, padding among them.
        filled: the share of them that is real.
        memory_filled: the share of what a device has free for a batch that is used; None in an evaluation.
        batches: in all.
        hours: on the slice; None where seconds are not known.
        device_hours: devices times hours.
        assumed: what is not known, and what it was taken to be.
    """

    what: str
    slice: str
    devices: int
    mesh: Mapping[str, int]
    programs: tuple[ProgramPlan, ...]
    fits: bool
    reason: str | None
    experts_at_once: int
    batch: Mapping[str, int]
    batch_tokens: int
    filled: float | None
    memory_filled: float | None
    batches: int
    hours: float | None
    device_hours: float | None
    assumed: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON has them."""
        return asdict(replace(self, programs=())) | {"programs": [each.to_json() for each in self.programs]}


def plan(
    load: TrainingLoad | ScoringLoad,
    of: Slice,
    mesh: Mapping[str, int] | None = None,
    progress: Progress | None = None,
) -> SlicePlan:
    """Returns what a workload takes on a slice.

    Args:
        load: from `workload.read`.
        of: the slice.
        mesh: sizes by axis; None is the recipe's, or what the run would take.
        progress: called while a program is compiled.

    Raises:
        UserError: the mesh does not divide the devices, or the compiler is missing or died.
    """
    if isinstance(load, TrainingLoad):
        return _trained(load, of, mesh, progress)
    return _scored(load, of, mesh, progress)


def _trained(
    load: TrainingLoad, of: Slice, mesh: Mapping[str, int] | None, progress: Progress | None
) -> SlicePlan:
    budget, known, platform = load.budget, load.known, of.kind.platform
    asked = mesh or load.mesh
    sizes = _sizes(of, asked or train.mesh_sizes(budget.kind, of.devices, len(known), of.slices))
    on = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
    config = sizing.with_dropout(load.network, budget)
    shared = sizing.plan_of(budget, [each.job for each in known], 1, 1)
    programs = sizing.programs_for(config, None, shared, on, platform)
    tried: dict[tuple[Layout, Shape], list[Compiled]] = {}

    def compiled(layout: Layout, shape: Shape, names: Sequence[str]) -> list[Compiled]:
        told = works.to_json(TrainingWork(config, shared, layout, shape))
        return compile_programs(of, sizes, works.BUILD, told, names, progress)

    def peak_bytes(layout: Layout, shape: Shape) -> int | None:
        found = tried[layout, shape] = compiled(layout, shape, ("gather", "advance"))
        peaks = [each.peak_bytes for each in found]
        return None if None in peaks else max(each for each in peaks if each is not None)

    search = sizing.search_of(
        config,
        budget,
        known,
        on,
        platform=platform,
        held_bytes=lambda layout: batch_search.held_bytes(programs(layout, sizing.SMALLEST)),
        peak_bytes=peak_bytes,
        limit_bytes=of.kind.memory_limit,
    )
    try:
        fit = batch_search.largest_fit(search)
    except OutOfMemoryError as error:
        return _not_trained(load, of, sizes, shared, search.layouts[-1], tried, str(error))
    names = [each.name for each in programs(fit.layout, fit.shape).all()]
    if not budget.validate_every:
        names.remove("measure")
    found = compiled(fit.layout, fit.shape, names)
    work = TrainingWork(config, shared, fit.layout, fit.shape)
    own = tuple(_beside(each, work, of, of.devices) for each in found)
    return _training_plan(load, of, sizes, fit, own)


def _training_plan(
    load: TrainingLoad, of: Slice, sizes: Mapping[str, int], fit: Fit, programs: tuple[ProgramPlan, ...]
) -> SlicePlan:
    known, (places, parts, _) = load.known, fit.layout
    filled = batches.filled(list(known[:places]), fit.shape, places, parts)
    real = sum(
        each.job.steps * each.job.batch_size * (float(each.prompt.mean()) + float(each.target.mean()))
        for each in known
    )
    # An expert moves once a batch at most, so there are never fewer batches than steps in a row.
    count = max(math.ceil(real / (filled * fit.shape.tokens)), _sequential(known, places))
    seconds = {each.compiled.name: each.compiled.seconds for each in programs}
    refused = [each.compiled.reason for each in programs if each.compiled.reason]
    hours = None
    if not refused and None not in seconds.values():
        known_seconds = {name: value or 0.0 for name, value in seconds.items()}
        each_batch = known_seconds["gather"] + known_seconds["advance"]
        each_expert = sum(known_seconds[name] for name in ("begin_one", "put", "take"))
        hours = (count * each_batch + len(known) * each_expert) / 3600
    return SlicePlan(
        what="training",
        slice=of.name,
        devices=of.devices,
        mesh=sizes,
        programs=programs,
        fits=not refused,
        reason=refused[0] if refused else None,
        experts_at_once=places,
        batch=fit.shape._asdict(),
        batch_tokens=fit.shape.tokens,
        filled=filled,
        memory_filled=fit.filled,
        batches=count,
        hours=hours,
        device_hours=None if hours is None else hours * of.devices,
        assumed=load.assumed,
    )


def _not_trained(
    load: TrainingLoad,
    of: Slice,
    sizes: Mapping[str, int],
    shared: Plan,
    layout: Layout,
    tried: Mapping[tuple[Layout, Shape], list[Compiled]],
    reason: str,
) -> SlicePlan:
    """Returns the plan of what does not fit: the smallest batch that was tried, and why it was refused."""
    shape, found = Shape(0, 0, 0, 0), ()
    if tried:
        (layout, shape), compiled = min(
            tried.items(), key=lambda item: (item[0][0].places, item[0][1].tokens)
        )
        work = TrainingWork(load.network, shared, layout, shape)
        found = tuple(_beside(each, work, of, of.devices) for each in compiled)
        reason = next((each.reason for each in compiled if each.reason), reason)
    return SlicePlan(
        what="training",
        slice=of.name,
        devices=of.devices,
        mesh=sizes,
        programs=found,
        fits=False,
        reason=reason,
        experts_at_once=layout.places,
        batch=shape._asdict(),
        batch_tokens=shape.tokens,
        filled=None,
        memory_filled=None,
        batches=0,
        hours=None,
        device_hours=None,
        assumed=load.assumed,
    )


def _beside(compiled: Compiled, work: Work, of: Slice, devices: int) -> ProgramPlan:
    """Returns a program beside the products that its mathematics asks for, on the devices that share them."""
    asked = work.model_flops(compiled.name)
    if asked is None:
        return ProgramPlan(compiled, None, None)
    mfu = None if not compiled.seconds else asked / devices / compiled.seconds / of.kind.peak_flops
    return ProgramPlan(compiled, asked / devices, mfu)


def _sequential(known: Sequence[Known], places: int) -> int:
    """Returns the batches until the last expert is done, if every batch moved all that stand at a place."""
    free = [0] * max(1, min(places, len(known)))
    for each in known:
        heapq.heapreplace(free, free[0] + each.job.steps)
    return max(free)


def _scored(
    load: ScoringLoad, of: Slice, mesh: Mapping[str, int] | None, progress: Progress | None
) -> SlicePlan:
    """Returns the plan of an evaluation, in which every host scores its share on its own devices."""
    local = of.devices // of.hosts
    base = sum(leaf.size * leaf.dtype.itemsize for leaf in _leaves(shapes.base_shapes(load.network)))
    # As `room.spread` lays it out: whole where it takes less than half of a device.
    asked = mesh or {"data" if 2 * base <= of.kind.memory_limit else "fsdp": local}
    sizes = _sizes(replace(of, devices=local, slices=1), asked)
    held = _stack_size(load, of)
    found: list[ProgramPlan] = []
    for work in _scoring_works(load, held, local):
        told = works.to_json(work)
        compiled = compile_programs(of, sizes, works.BUILD, told, None, progress)
        devices = local if isinstance(work, ScoringWork) else 1  # engines embed on one
        found += [_beside(each, work, of, devices) for each in compiled]
    first = found[0].compiled
    tokens = _rows_at_once(load, local, load.prompt, load.nodes) * (load.prompt + load.nodes)
    count = math.ceil(load.rows * load.scorers * (load.prompt + load.nodes) / tokens)
    refused = [each.compiled.reason for each in found if each.compiled.reason]
    hours = None
    if first.seconds is not None and not refused:
        hours = count * first.seconds / of.hosts / 3600
    return SlicePlan(
        what="evaluation",
        slice=of.name,
        devices=of.devices,
        mesh=sizes,
        programs=tuple(found),
        fits=not refused,
        reason=refused[0] if refused else None,
        experts_at_once=held,
        batch={"rows": tokens // (load.prompt + load.nodes), "prompt": load.prompt, "nodes": load.nodes},
        batch_tokens=tokens,
        filled=None,
        memory_filled=None,
        batches=count,
        hours=hours,
        device_hours=None if hours is None else hours * of.devices,
        assumed=load.assumed,
    )


def _scoring_works(load: ScoringLoad, held: int, local: int) -> list[Work]:
    """Returns what an evaluation compiles: rows of mean length first, which stand for all of them."""
    told: Mapping[str, Any] = {"network": load.network, "kind": load.kind, "options": load.options}
    lengths = load.lengths
    longest = buckets.Shape(_up(lengths.prompt, ROW_STEP), _up(lengths.answer, 4), _up(lengths.answer, 4))
    mean = buckets.Shape(_up(load.prompt, ROW_STEP), _up(load.nodes, 4), _up(load.nodes, 4))
    found: list[Work] = []
    for way in load.ways:
        experts = load.experts if way == "gate" else held + 1  # and the one that changes nothing
        for name, shape in (("", mean), (" longest rows", longest)):
            rows = _rows_at_once(load, local, shape.prompt, shape.nodes)
            name = f"score {way}{name}"
            found.append(ScoringWork(name, way=way, shape=shape, rows=rows, experts=experts, **told))
    if load.generates:
        rows = _rows_at_once(load, local, longest.prompt, lengths.answer)
        found.append(
            GenerationWork(
                "generate",
                way=load.ways[0],
                rows=rows,
                prompt=longest.prompt,
                length=lengths.answer,
                experts=held + 1,
                **told,
            )
        )
    keys = load.experts * KEYS_PER_EXPERT
    found += [
        EmbeddingWork(
            "embed T5", load.network, 64, buckets.rung(longest.prompt, buckets.LADDER, what="prompt")
        ),
        EmbeddingWork("embed MiniLM", None, ON_ACCELERATOR // 256, 256),
        SearchWork("search", load.queries, keys, load.network.emb_dim),
    ]
    return found


def _stack_size(load: ScoringLoad, of: Slice) -> int:
    """Returns how many experts are held to score with, float32, as `stacks` holds them."""
    if load.kind == "full":
        return 1
    expert = shapes.expert_shapes(load.network, load.kind, load.options)
    one = sum(leaf.size * 4 for leaf in _leaves(expert))
    return max(1, min(AT_ONCE, load.experts, int(SHARE * of.kind.memory_limit) // one - 1))


def _rows_at_once(load: ScoringLoad, local: int, prompt: int, nodes: int) -> int:
    return max(1, load.batch_tokens // (prompt + nodes)) * local


def _sizes(of: Slice, asked: Mapping[str, int]) -> dict[str, int]:
    """Returns the sizes of all axes of a mesh; `data` has what is left."""
    rest = 1 if -1 in asked.values() else -1
    ones = dict.fromkeys(meshes.AXES, 1)
    found = ones | meshes.fitted(of.devices, **(ones | {"data": rest} | dict(asked)))
    meshes.between_slices(found, of.slices)
    return found


def _up(number: int, step: int) -> int:
    return -(-number // step) * step


def _leaves(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree)
