"""Programs of grouped training: all that a group runs on its devices, as values.

They are made from a network, a plan, a layout and the shape of a batch, with no array, so that the engine and
`elm plan` have the same ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from elm_jax.aot.program import Program, get_platform, with_replication, with_shardings
from elm_jax.models import expert_layers as ex
from elm_jax.models import shapes, sharding
from elm_jax.models.sizes import T5Config
from elm_jax.training import optimizers, step
from elm_jax.training.batches import Shape


@dataclass(frozen=True)
class Plan:
    """What the experts of a group share."""

    kind: str = "bottleneck"
    options: Mapping[str, Any] = field(default_factory=dict)  # of a fresh expert, by kind
    optimizer: str = "adamw"
    clip: float | None = None  # the gradient's largest norm, where not the optimiser's own
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    places: int = 32  # experts that train at once
    batch_tokens: int = 8192  # of the longest batch, prompts and answers
    save_every: int = 200  # rounds; at most so many are lost
    validate_every: int = 0  # steps of an expert; 0 is never
    keep: str = "last"  # or "best", of those that were validated


class Layout(NamedTuple):
    """How the experts and rows of a group lie on its devices."""

    places: int  # experts that train at once
    parts: int  # of the mesh's expert axis, each with its own experts
    row_parts: int  # into which the rows of a batch are split


def layout_for(kind: str, places: int, mesh: Mesh | AbstractMesh | None) -> Layout:
    """Returns the layout of so many experts, rounded up to what the mesh divides.

    A part has one full expert, for no row has a network of its own.
    """
    parts = mesh.shape["expert"] if mesh else 1
    places = parts if kind == "full" else -(-places // parts) * parts
    return Layout(places, parts, sharding.count_row_shards(mesh.shape) if mesh else 1)


@dataclass(frozen=True)
class GroupPrograms:
    """What a group runs. Each says what else lies on the devices meanwhile.

    Attributes:
        begin: fresh experts at all places, from their seeds and the base.
        begin_one: one fresh expert, beside those that train.
        zero: the sums before the first batch.
        gather: adds the gradients of a batch to the sums.
        advance: moves the experts whose step is whole.
        measure: adds the loss of a batch, without dropout.
        put: puts one expert at a place.
        restart: lets an expert that was stopped go on.
        take: takes one expert from its place.
    """

    begin: Program
    begin_one: Program
    zero: Program
    gather: Program
    advance: Program
    measure: Program
    put: Program
    restart: Program
    take: Program

    def all(self) -> list[Program]:
        """Returns all of them, in the order in which a training runs them first."""
        return [getattr(self, name) for name in self.__dataclass_fields__]


def group_programs(
    config: T5Config,
    plan: Plan,
    layout: Layout,
    shape: Shape,
    *,
    base: Any = None,
    mesh: Mesh | AbstractMesh | None = None,
    platform: str | None = None,
) -> GroupPrograms:
    """Returns the programs of a group.

    Args:
        config: the network, with its dropout.
        plan: what the experts share.
        layout: from `layout_for`.
        shape: of all batches.
        base: the shapes of the base; without it, of `config` in its own type.
        mesh: of devices that are here or not; None is the default device. Of one without devices programs
            tell their shapes, but are not compiled.
        platform: that they are compiled for; that of the mesh's devices where it has any.
    """
    platform = platform or get_platform(mesh)
    base = shapes.base_shapes(config) if base is None else shapes.shapes_of(base)
    options = hashable(plan.options)
    optimizer = optimizers.optimizer(plan.optimizer, **({} if plan.clip is None else {"clip": plan.clip}))

    def laid(tree: Any, *, experts: bool = True) -> Any:
        return (
            tree
            if mesh is None
            else with_shardings(tree, sharding.param_shardings(mesh, tree, experts=experts))
        )

    def state_of(count: int) -> Any:
        # One expert for a place lies whole on every device of the mesh's expert axis.
        one = jax.eval_shape(
            lambda base: ex.init_expert(plan.kind, jax.random.key(0), base, dict(options)), base
        )
        stack = shapes.stack_shapes(one, count)
        return laid(jax.eval_shape(lambda params: step.start(params, optimizer), stack))

    base = laid(base, experts=False)
    state, one = state_of(layout.places), state_of(1)
    sums = laid(jax.eval_shape(step.nothing, state.params))
    best = (state.params,) if plan.keep == "best" else ()
    frozen = None if plan.kind == "full" else base  # full experts stand in its place
    held = () if frozen is None else (frozen,)  # also where a program reads a part of it alone
    rows = rows_of(shape, mesh)
    scalar = with_replication(mesh, jax.ShapeDtypeStruct((), jnp.int32))
    count = (layout.places,)
    move = step.Move(
        *(
            with_replication(mesh, jax.ShapeDtypeStruct(count, kind))
            for kind in (jnp.float32, jnp.bool_, jnp.int32)
        )
    )
    losses = jax.ShapeDtypeStruct(count, jnp.float32)
    shared: Mapping[str, Any] = {"platform": platform}
    begin = step.begin(plan.kind, options, optimizer, **shared)
    gather = step.gather(
        config, plan.kind, z_loss=plan.z_loss, label_smoothing=plan.label_smoothing, **shared
    )
    advance = step.advance(optimizer, **shared)
    measure = step.measure(config, plan.kind, **shared)
    moments = (state.moments, state.stopped)
    return GroupPrograms(
        begin=Program("begin", begin, (with_replication(mesh, _seeds(layout.places)), base), held),
        begin_one=Program(
            "begin_one", begin, (with_replication(mesh, _seeds(1)), base), (*held, state, sums, *best)
        ),
        zero=Program("zero", step.nothing, (state.params,), (*held, *moments)),
        gather=Program("gather", gather, (state.params, frozen, rows, sums), (*moments, *best)),
        advance=Program("advance", advance, (state, sums, move), (*held, *best)),
        measure=Program(
            "measure", measure, (state.params, frozen, rows, laid(losses)), (*moments, sums, *best)
        ),
        put=Program("put", step.put, (state, scalar, one), (*held, sums, *best)),
        restart=Program("restart", step.taken_up, (state, sums, scalar), (*held, *best)),
        take=Program("take", step.taken, (state.params, scalar), (*held, *moments, sums, *best)),
    )


def rows_of(shape: Shape, mesh: Mesh | AbstractMesh | None) -> step.Rows:
    """Returns the shapes of a batch's arrays, its rows split over the mesh."""
    rows, prompt, target, segments, folded = shape
    widths = (prompt, prompt, target, target, segments, segments, segments)
    dtypes = (*(np.int32,) * 5, np.float32, np.uint32)
    arrays: list[Any] = [
        jax.ShapeDtypeStruct((rows // folded if name in step.OF_TARGETS else rows, width), dtype)
        for name, width, dtype in zip(step.Rows._fields, widths, dtypes, strict=True)
    ]
    found = step.Rows(*arrays)
    if mesh is None:
        return found
    return with_shardings(found, NamedSharding(mesh, PartitionSpec(sharding.RULES["batch"])))


def hashable(options: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Returns the options of an expert's kind as a key; recipes have lists for tuples."""
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return tuple(sorted(plain.items()))


def _seeds(count: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((count,), jnp.uint32)
