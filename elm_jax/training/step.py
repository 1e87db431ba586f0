"""The grouped step: E experts advance in one program, over one frozen base.

Examples of all experts are packed in the rows of a batch; every segment names the slot of its expert, whose
parameters are gathered for it, so the products with the base run over the tokens of all experts at once.
Gradients are added up over as many batches as an expert's step takes, each example weighed by its share of
the expert's loss; then the expert moves by its own learning rate. No gradient, clipping or moment ever meets
a neighbour's.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float, Int

from elm_jax.aot.program import jit
from elm_jax.axes import Array, ExpertOfSegment, Prompts, Seeds
from elm_jax.models import expert_layers as ex
from elm_jax.models import sharding
from elm_jax.models.sizes import T5Config
from elm_jax.models.t5 import T5
from elm_jax.records import Params
from elm_jax.training.config import LossConfig
from elm_jax.training.loss import PLAIN, token_losses

FINITE = -1


class GroupState(NamedTuple):
    """What a group carries from step to step; every leaf has a leading axis E.

    Attributes:
        params: of the experts.
        moments: of the optimiser.
        stopped: the step whose loss or gradient was not finite; FINITE where there was none.
    """

    params: Params
    moments: Any
    stopped: Int[Array, " E"]


class Rows(NamedTuple):
    """A batch: packed rows with segments 1 to G, and 0 on padding, of any of the group's experts.

    Targets have a row for every `folded` rows of prompts, whose segments they count on: 1 to G are those of
    the first, G + 1 to 2 G those of the second.

    Attributes:
        prompts: tokens.
        prompt_segments: segment of each token.
        targets: tokens.
        target_segments: segment of each token.
        slot: of each segment's expert, among those on its part of the mesh.
        share: 1 / the real target tokens of the expert's step, for each segment.
        seeds: what dropout is drawn from, for each segment.
    """

    prompts: Prompts
    prompt_segments: Prompts
    targets: Int[Array, "_ T"]
    target_segments: Int[Array, "_ T"]
    slot: ExpertOfSegment
    share: Float[Array, "B G"]
    seeds: Seeds


OF_TARGETS = ("targets", "target_segments")


class GradAccumulator(NamedTuple):
    """What batches have added up so far, for every expert since its last step."""

    gradient: Params
    loss: Float[Array, " E"]


class Update(NamedTuple):
    """How experts move.

    Attributes:
        learning_rate: of each.
        active: whether its step is complete; others stay.
        step: number of the expert's own step, noted if its loss is not finite.
    """

    learning_rate: Float[Array, " E"]
    active: Bool[Array, " E"]
    step: Int[Array, " E"]


Accumulate = Callable[[Params, Params | None, Rows, GradAccumulator], GradAccumulator]
Evaluate = Callable[[Params, Params | None, Rows, Float[Array, " E"]], Float[Array, " E"]]
Init = Callable[[Any, Params], GroupState]
ApplyUpdate = Callable[
    [GroupState, GradAccumulator, Update], tuple[GroupState, GradAccumulator, Float[Array, " E"]]
]


def stack(trees: list[Params]) -> Params:
    """Puts E trees of one shape into one with a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def initial_state(params: Params, optimizer: optax.GradientTransformation) -> GroupState:
    """Returns the state before the first step of stacked experts [E, …]."""
    count = jax.tree.leaves(params)[0].shape[0]
    return GroupState(params, jax.vmap(optimizer.init)(params), jnp.full(count, FINITE, jnp.int32))


@partial(jax.jit, keep_unused=True)  # an argument that is unused still says which devices to run on
def zero_accumulator(params: Params) -> GradAccumulator:
    """Returns the accumulator before the first batch."""
    leaf = jax.tree.leaves(params)[0]
    zero = GradAccumulator(jax.tree.map(jnp.zeros_like, params), jnp.zeros(leaf.shape[0], jnp.float32))
    return sharding.constrain_sharding_like(zero, leaf)


def dropout_seeds(seed: int, step: int, rows: int) -> np.ndarray:
    """Returns the seeds of dropout in the rows of one step of an expert, which depend on nothing else."""
    return np.random.default_rng((seed, step)).integers(0, 2**32, rows, np.uint32)


@lru_cache(maxsize=16)
def accumulate(
    network: T5Config, kind: str, loss: LossConfig = PLAIN, *, platform: str = "cpu"
) -> Accumulate:
    """Returns the program `(params, base, rows, accumulator) -> accumulator` that adds a batch.

    Parameters are those of E experts, [E, …]. Full ones train one on each part of the mesh, because no row
    has a network of its own, and take no base. The old accumulator is donated.
    """
    total = _total_loss(network, kind, loss, train=True)

    def add(params: Params, base: Params | None, rows: Rows, accumulator: GradAccumulator) -> GradAccumulator:
        gradient, losses = jax.grad(total, has_aux=True)(params, base, rows)
        return jax.tree.map(jnp.add, accumulator, GradAccumulator(gradient, losses))

    return jit(_shard_map_over_experts(add), platform=platform, donate_argnums=3)


@lru_cache(maxsize=16)
def evaluate(network: T5Config, kind: str, *, platform: str = "cpu") -> Evaluate:
    """Returns the program `(params, base, rows, loss) -> loss` that adds a batch's plain loss."""
    total = _total_loss(network, kind, PLAIN, train=False)

    def add(params: Params, base: Params | None, rows: Rows, loss: Array) -> Array:
        return loss + total(params, base, rows)[1]

    return jit(_shard_map_over_experts(add), platform=platform)


@lru_cache(maxsize=16)
def apply_update(optimizer: optax.GradientTransformation, *, platform: str = "cpu") -> ApplyUpdate:
    """Returns the program `(state, accumulator, update) -> (state, accumulator, loss of each)`.

    The accumulator of those that moved begins anew. An expert whose loss or gradient is not finite stays
    where it is, from this step on. The old state and accumulator are donated.
    """

    def one(
        state: GroupState, accumulator: GradAccumulator, update: Update
    ) -> tuple[GroupState, GradAccumulator, Array]:
        finite = jnp.isfinite(accumulator.loss) & jnp.isfinite(optax.tree.norm(accumulator.gradient))
        moving = update.active & (state.stopped == FINITE)
        direction, moments = optimizer.update(accumulator.gradient, state.moments, state.params)
        params = jax.tree.map(lambda p, d: p - update.learning_rate * d, state.params, direction)
        stopped = jnp.where(moving & ~finite, update.step, state.stopped)
        params, moments = jax.tree.map(
            lambda new, old: jnp.where(moving & finite, new, old),
            (params, moments),
            (state.params, state.moments),
        )
        rest = jax.tree.map(lambda leaf: jnp.where(update.active, 0, leaf), accumulator)
        return GroupState(params, moments, stopped), rest, accumulator.loss

    def every(
        state: GroupState, accumulator: GradAccumulator, update: Update
    ) -> tuple[GroupState, GradAccumulator, Array]:
        moved, rest, loss = jax.vmap(one)(state, accumulator, update)
        like = jax.tree.leaves(state.params)[0]
        return (
            sharding.constrain_sharding_like(moved, like),
            sharding.constrain_sharding_like(rest, like),
            loss,
        )

    return jit(every, platform=platform, donate_argnums=(0, 1))


@lru_cache(maxsize=16)
def init(
    kind: str,
    options: tuple[tuple[str, Any], ...],
    optimizer: optax.GradientTransformation,
    *,
    platform: str = "cpu",
) -> Init:
    """Returns the program `(seeds, base) -> state` of fresh experts, each a function of its seed alone."""

    def every(seeds: Array, base: Params) -> GroupState:
        def one(seed: Array) -> Params:
            return ex.init_expert(kind, jax.random.key(seed), base, dict(options))

        state = initial_state(jax.vmap(one)(seeds), optimizer)
        return sharding.constrain_sharding_like(state, jax.tree.leaves(base)[0])

    return jit(every, platform=platform)


@partial(jax.jit, donate_argnums=0)
def put_slot(tree: Any, slot: Int[Array, ""], one: Any) -> Any:
    """Returns stacked trees with the only one of another stack in a slot."""
    return sharding.constrain_sharding_like(sharding.put_expert(tree, one, slot), jax.tree.leaves(tree)[0])


@partial(jax.jit, donate_argnums=(0, 1))
def resume_slot(
    state: GroupState, accumulator: GradAccumulator, slot: Int[Array, ""]
) -> tuple[GroupState, GradAccumulator]:
    """Lets a stopped expert go on from where it is, with an accumulator of zeros."""
    like = jax.tree.leaves(state.params)[0]
    zero = jax.tree.map(lambda leaf: jnp.zeros((1, *leaf.shape[1:]), leaf.dtype), accumulator)
    going = jnp.full(1, FINITE, jnp.int32)
    state = state._replace(stopped=sharding.put_expert(jnp.asarray(state.stopped), going, slot))
    accumulator = sharding.put_expert(accumulator, zero, slot)
    return sharding.constrain_sharding_like(state, like), sharding.constrain_sharding_like(accumulator, like)


@jax.jit
def take_slot(tree: Any, slot: Int[Array, ""]) -> Any:
    """Returns one slot of stacked trees, as a stack of one."""
    return sharding.take_expert(tree, slot)


def _total_loss(network: T5Config, kind: str, config: LossConfig, *, train: bool) -> Callable[..., Any]:
    """Returns `(params, base, rows) -> (loss of all experts together, loss of each)`."""
    model = T5(network, train=train and network.dropout_rate > 0)
    # The key tells layers apart; the seeds of the rows tell rows and steps apart.
    rngs: Mapping[str, Any] = {"dropout": jax.random.key(0, impl="threefry2x32")} if model.train else {}

    def total(params: Params, base: Params | None, rows: Rows) -> tuple[Array, Array]:
        count = jax.tree.leaves(params)[0].shape[0]
        # One expert is not gathered: it serves all rows.
        experts, index = (params, rows.slot) if count > 1 else (jax.tree.map(lambda p: p[0], params), None)
        frozen: Any = experts if kind == "full" else base
        adapters = None if kind == "full" else experts
        logits = model.apply({"params": frozen}, rows, adapters, index, rngs=rngs, method=_logits)
        segment = jnp.maximum(rows.target_segments - 1, 0)
        losses = token_losses(jnp.asarray(logits), rows.targets, config)
        losses = losses * jnp.take_along_axis(_fold_rows(rows.share, rows), segment, axis=1)
        slot = jnp.take_along_axis(_fold_rows(rows.slot, rows), segment, axis=1)
        each = jax.ops.segment_sum(losses.reshape(-1), slot.reshape(-1), count)
        return each.sum(), each

    return total


def _logits(model: T5, rows: Rows, expert: Params | None, slot: Any) -> Float[Array, "_ T V"]:
    """Returns the logits of the targets; the decoder reads the prompts that are folded as one."""
    encoded = model.encode(rows.prompts, expert, slot, rows.prompt_segments, rows.seeds)
    count, segments_of_row = rows.prompts.shape[0], rows.share.shape[1]
    before = np.arange(count, dtype=np.int32)[:, None] % (count // rows.targets.shape[0]) * segments_of_row
    segments = jnp.where(rows.prompt_segments > 0, rows.prompt_segments + before, 0)
    return model.decode(
        _fold_rows(encoded, rows),
        _fold_rows(rows.prompts, rows),
        rows.targets[:, None],
        expert,
        None if slot is None else _fold_rows(slot, rows),
        _fold_rows(segments, rows),
        rows.target_segments[:, None],
        _fold_rows(rows.seeds, rows),
    )[:, 0]


def _fold_rows(array: Array, rows: Rows) -> Array:
    """Joins the prompts' rows [B, N, …] whose targets are one row: [B / folded, folded N, …]."""
    array = jnp.asarray(array)
    return array.reshape(rows.targets.shape[0], -1, *array.shape[2:])


def _shard_map_over_experts(add: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function with every expert's rows on its own part of the mesh that the experts lie on."""

    def on_mesh(params: Params, base: Params | None, rows: Rows, total: Any) -> Any:
        leaf = jax.tree.leaves(params)[0]
        return sharding.constrain_sharding_like(
            sharding.shard_map_over_experts(add, params, leaf.shape[0])(params, base, rows, total), leaf
        )

    return on_mesh
