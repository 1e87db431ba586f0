"""Programs of grouped training: all that a group runs on its devices, as values.

They are made from a network, a plan, a layout and the shape of a batch, with no array, so that training and
`elm plan` have the same ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from elm_jax.aot.program import Program, get_platform, with_replication, with_shardings
from elm_jax.models import expert_layers as ex
from elm_jax.models import shapes, sharding
from elm_jax.models.expert_kinds import GATES, param_factors
from elm_jax.models.sizes import T5Config
from elm_jax.training import optimizers, step
from elm_jax.training.batches import Shape
from elm_jax.training.config import TrainConfig


@dataclass(frozen=True)
class GroupPlan:
    """What the experts of a group share, with nothing left open.

    Attributes:
        config: how they are trained.
        max_experts: that train at once.
        batch_tokens: of a batch at most, prompts and answers.
        save_every: batches between two checkpoints; so many may be lost.
    """

    config: TrainConfig = field(default_factory=TrainConfig)
    max_experts: int = 32
    batch_tokens: int = 8192
    save_every: int = 200


class Layout(NamedTuple):
    """How the experts and rows of a group lie on its devices.

    Attributes:
        slots: experts that train at once.
        parts: of the mesh's expert axis, each with its own experts.
        row_parts: into which the rows of a batch are split.
    """

    slots: int
    parts: int
    row_parts: int


def layout_for(kind: str, slots: int, mesh: Mesh | AbstractMesh | None) -> Layout:
    """Returns the layout of so many experts, rounded up to what the mesh divides.

    A part has one full expert, for no row has a network of its own.
    """
    parts = mesh.shape["expert"] if mesh else 1
    slots = parts if kind == "full" else -(-slots // parts) * parts
    return Layout(slots, parts, sharding.count_row_shards(mesh.shape) if mesh else 1)


@dataclass(frozen=True)
class GroupPrograms:
    """What a group runs. Each program says what else lies on the devices meanwhile.

    The names of the programs are those of the fields; `elm plan` prints them.

    Attributes:
        init: fresh experts in all slots, from their seeds and the base.
        init_one: one fresh expert, beside those that train.
        zero: the accumulator before the first batch.
        accumulate: adds the gradients of a batch.
        update: moves the experts whose step is complete.
        train_step: both in one, for a batch that has whole steps alone; then there is no accumulator.
        evaluate: adds the loss of a batch, without dropout.
        put_slot: puts one expert into a slot.
        resume_slot: lets an expert that was stopped go on.
        take_slot: takes one expert out of its slot.
    """

    init: Program
    init_one: Program
    zero: Program
    accumulate: Program
    update: Program
    train_step: Program
    evaluate: Program
    put_slot: Program
    resume_slot: Program
    take_slot: Program

    def all(self) -> list[Program]:
        """Returns all of them, in the order in which a training runs them first."""
        return [getattr(self, each.name) for each in fields(self)]


def group_programs(
    network: T5Config,
    plan: GroupPlan,
    layout: Layout,
    shape: Shape,
    *,
    base: Any = None,
    mesh: Mesh | AbstractMesh | None = None,
    platform: str | None = None,
) -> GroupPrograms:
    """Returns the programs of a group.

    Args:
        network: the network, with its dropout.
        plan: what the experts share.
        layout: from `layout_for`.
        shape: of all batches.
        base: the shapes of the base. Default: of `network` in its own type.
        mesh: of devices that are here or not. Default: the default device. Programs on a mesh without devices
            have shapes, but are not compiled.
        platform: that they are compiled for. Default: that of the mesh's devices.
    """
    platform = platform or get_platform(mesh)
    base = shapes.base_shapes(network) if base is None else shapes.shapes_of(base)
    config = plan.config
    kind, options = config.expert.kind, hashable(config.expert.options)
    factors = hashable(param_factors(kind, config.expert.options))
    optimizer = optimizers.optimize_scaled_params(optimizers.make_optimizer(config.optimizer), factors)

    def shard(tree: Any, *, experts: bool = True) -> Any:
        return (
            tree
            if mesh is None
            else with_shardings(tree, sharding.param_shardings(mesh, tree, experts=experts))
        )

    def state_shapes(count: int) -> Any:
        # A single expert that is on its way to a slot lies whole on every device of the expert axis.
        one = jax.eval_shape(lambda base: ex.init_expert(kind, jax.random.key(0), base, dict(options)), base)
        stack = shapes.stack_shapes(one, count)
        return shard(jax.eval_shape(lambda params: step.initial_state(params, optimizer), stack))

    base = shard(base, experts=False)
    state, one = state_shapes(layout.slots), state_shapes(1)
    accumulator = shard(jax.eval_shape(step.zero_accumulator, state.params))
    best = (state.params,) if config.checkpoint.keep == "best" else ()
    frozen: Any = None if kind == "full" else base  # full experts take its place
    if kind == GATES:
        one_beside = jax.eval_shape(
            lambda base: ex.init_expert("lora", jax.random.key(0), base, dict(options)), base
        )
        frozen = step.Frozen(base, shard(shapes.stack_shapes(one_beside, layout.slots)))
    held = () if frozen is None else (frozen,)  # also where a program reads a part of it alone
    rows = row_shapes(shape, mesh)
    slot = with_replication(mesh, jax.ShapeDtypeStruct((), jnp.int32))
    count = (layout.slots,)
    dtypes = (jnp.float32, jnp.bool_, jnp.int32)
    update = step.SlotUpdates(
        *(with_replication(mesh, jax.ShapeDtypeStruct(count, dtype)) for dtype in dtypes)
    )
    losses = jax.ShapeDtypeStruct(count, jnp.float32)
    target: Mapping[str, Any] = {"platform": platform}
    init = step.init(kind, options, optimizer, **target)
    accumulate = step.accumulate(network, kind, config.loss, **target)
    apply_update = step.apply_update(optimizer, **target)
    train_step = step.train_step(network, kind, optimizer, config.loss, **target)
    evaluate = step.evaluate(network, kind, **target)
    moments = (state.moments, state.stopped)
    params = state.params

    # What each program runs, what it takes, and what else lies on the devices.
    parts: Mapping[str, tuple[Any, tuple[Any, ...], tuple[Any, ...]]] = {
        "init": (init, (with_replication(mesh, _seed_shapes(layout.slots)), base), held),
        "init_one": (
            init,
            (with_replication(mesh, _seed_shapes(1)), base),
            (*held, state, accumulator, *best),
        ),
        "zero": (step.zero_accumulator, (params,), (*held, *moments)),
        "accumulate": (accumulate, (params, frozen, rows, accumulator), (*moments, *best)),
        "update": (apply_update, (state, accumulator, update), (*held, *best)),
        "train_step": (train_step, (state, frozen, rows, update), best),
        "evaluate": (evaluate, (params, frozen, rows, shard(losses)), (*moments, accumulator, *best)),
        "put_slot": (step.put_slot, (state, slot, one), (*held, accumulator, *best)),
        "resume_slot": (step.resume_slot, (state, accumulator, slot), (*held, *best)),
        "take_slot": (step.take_slot, (params, slot), (*held, *moments, accumulator, *best)),
    }
    return GroupPrograms(**{name: Program(name, *part) for name, part in parts.items()})


def row_shapes(shape: Shape, mesh: Mesh | AbstractMesh | None) -> step.Rows:
    """Returns the shapes of a batch's arrays, its rows split over the mesh."""
    rows, prompt, target, segments, folded, choices = shape
    widths = (prompt, prompt, target, target, segments, segments, segments)
    dtypes = (*(np.int32,) * 5, np.float32, np.uint32)
    arrays: list[Any] = [
        jax.ShapeDtypeStruct((rows // folded if name in step.OF_TARGETS else rows, width), dtype)
        for name, width, dtype in zip(step.ALWAYS_PRESENT_FIELDS, widths, dtypes, strict=True)
    ]
    structs = step.Rows(*arrays)
    if choices > 1:
        of_segment: Any = structs.share
        of_choice: Any = jax.ShapeDtypeStruct((rows, segments, choices), np.int32)
        of_token: Any = structs.targets
        structs = structs._replace(choices=step.ChoiceRows(of_token, of_choice, of_segment, of_segment))
    if mesh is None:
        return structs
    return with_shardings(structs, NamedSharding(mesh, PartitionSpec(sharding.RULES["batch"])))


def hashable(options: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Returns the options of an expert's kind as a key; recipes have lists for tuples."""
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return tuple(sorted(plain.items()))


def _seed_shapes(count: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((count,), jnp.uint32)
