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

from elm_jax.aot.program import jit, traced_platform
from elm_jax.axes import Array, ExpertOfSegment, Prompts, Seeds
from elm_jax.models import expert_layers as ex
from elm_jax.models import paths, sharding
from elm_jax.models.sizes import T5Config
from elm_jax.models.t5 import T5
from elm_jax.records import Params
from elm_jax.training.config import LossConfig
from elm_jax.training.loss import PLAIN_LOSS, choice_losses, token_losses, unlikelihood_losses

ALL_FINITE = -1


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


class ChoiceRows(NamedTuple):
    """What rows have beside their targets where the loss is one of all answer choices, T-Few's.

    The choices of an example follow each other in its row of targets, the right one first.

    Attributes:
        target_choices: which choice of its example a target token is of, from 1.
        lengths: tokens of each of C choices of each segment; 0 where there is none.
        wrong_choice_weight: 1 / the tokens of wrong choices in the expert's step, for each segment.
        row_weight: 1 / the rows of the expert's step, for each segment.
    """

    target_choices: Int[Array, "_ T"]
    lengths: Int[Array, "B G C"]
    wrong_choice_weight: Float[Array, "B G"]
    row_weight: Float[Array, "B G"]


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
        choices: of the answers, if the loss reads them.
    """

    prompts: Prompts
    prompt_segments: Prompts
    targets: Int[Array, "_ T"]
    target_segments: Int[Array, "_ T"]
    slot: ExpertOfSegment
    share: Float[Array, "B G"]
    seeds: Seeds
    choices: ChoiceRows | None = None


class Frozen(NamedTuple):
    """What stays as it is while gates are trained.

    Attributes:
        base: the base's parameters.
        experts: of the group, [E, …], each beside its gates.
    """

    base: Params
    experts: Params


ALWAYS_PRESENT_FIELDS = Rows._fields[:-1]
OF_TARGETS = ("targets", "target_segments", "target_choices")


class GradAccumulator(NamedTuple):
    """What batches have added up so far, for every expert since its last step."""

    gradient: Params
    loss: Float[Array, " E"]


class SlotUpdates(NamedTuple):
    """How experts move.

    Attributes:
        learning_rate: of each.
        active: whether its step is complete; others stay.
        step: number of the expert's own step, noted if its loss is not finite.
    """

    learning_rate: Float[Array, " E"]
    active: Bool[Array, " E"]
    step: Int[Array, " E"]


Accumulate = Callable[[Params, Params | Frozen | None, Rows, GradAccumulator], GradAccumulator]
Evaluate = Callable[[Params, Params | Frozen | None, Rows, Float[Array, " E"]], Float[Array, " E"]]
Init = Callable[[Any, Params], GroupState]
ApplyUpdate = Callable[
    [GroupState, GradAccumulator, SlotUpdates], tuple[GroupState, GradAccumulator, Float[Array, " E"]]
]
TrainStep = Callable[
    [GroupState, Params | Frozen | None, Rows, SlotUpdates], tuple[GroupState, Float[Array, " E"]]
]


def stack(trees: list[Params]) -> Params:
    """Puts E trees of one shape into one with a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def initial_state(params: Params, optimizer: optax.GradientTransformation) -> GroupState:
    """Returns the state before the first step of stacked experts [E, …]."""
    count = jax.tree.leaves(params)[0].shape[0]
    return GroupState(params, jax.vmap(optimizer.init)(params), jnp.full(count, ALL_FINITE, jnp.int32))


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
    network: T5Config, kind: str, loss: LossConfig = PLAIN_LOSS, *, platform: str = "cpu"
) -> Accumulate:
    """Returns the program `(params, base, rows, accumulator) -> accumulator` that adds a batch.

    Parameters are those of E experts, [E, …]. Full ones train one on each part of the mesh, because no row
    has a network of its own, and take no base. Gates take `Frozen` as base. The old accumulator is donated.
    """
    gradient, total = _gradient(network, kind, loss), _total_loss(network, kind, loss, train=True)

    def add(
        params: Params, base: Params | Frozen | None, rows: Rows, accumulator: GradAccumulator
    ) -> GradAccumulator:
        if traced_platform() != "tpu" or kind == "dora":  # of whose magnitudes JAX sums no gradient in place
            return jax.tree.map(jnp.add, accumulator, gradient(params, base, rows))
        found: Any = jax.vjp(lambda own: total(own, base, rows), params, has_aux=True)
        loss, pull_back, each = found
        # Where the backward pass sums anyway, over layers and segments, it begins with what was there: no
        # zeros are written first, and no sum is added to another.
        sums = jax.tree.map(jax.new_ref, accumulator.gradient)
        pull_back.with_refs(sums)(jnp.ones_like(loss))
        return GradAccumulator(jax.tree.map(jax.freeze, sums), accumulator.loss + each)

    return jit(_shard_map_over_experts(add), platform=platform, donate_argnums=3)


@lru_cache(maxsize=16)
def train_step(
    network: T5Config,
    kind: str,
    optimizer: optax.GradientTransformation,
    loss: LossConfig = PLAIN_LOSS,
    *,
    platform: str = "cpu",
) -> TrainStep:
    """Returns the program `(state, base, rows, update) -> (state, loss of each)` of steps of one batch.

    It is `accumulate` and `apply_update` in one, for a batch that has all rows of the steps that it has any
    of: gradients are never added to others, so that none are kept beside the state, cleared or written back.
    The old state is donated.
    """
    gradient = _gradient(network, kind, loss)
    move = _mover(optimizer)

    def run(
        state: GroupState, base: Params | Frozen | None, rows: Rows, update: SlotUpdates
    ) -> tuple[GroupState, Array]:
        # The function that runs on each expert's part of a mesh takes a fourth argument: here there is none.
        own = _shard_map_over_experts(lambda params, base, rows, _: gradient(params, base, rows))
        found = own(state.params, base, rows, ())
        moved = jax.vmap(move)(state, found, update)
        return sharding.constrain_sharding_like(moved, jax.tree.leaves(state.params)[0]), found.loss

    return jit(run, platform=platform, donate_argnums=0)


@lru_cache(maxsize=16)
def evaluate(network: T5Config, kind: str, *, platform: str = "cpu") -> Evaluate:
    """Returns the program `(params, base, rows, loss) -> loss` that adds a batch's plain loss."""
    total = _total_loss(network, kind, PLAIN_LOSS, train=False)

    def add(params: Params, base: Params | Frozen | None, rows: Rows, loss: Array) -> Array:
        return loss + total(params, base, rows)[1]

    return jit(_shard_map_over_experts(add), platform=platform)


@lru_cache(maxsize=16)
def apply_update(optimizer: optax.GradientTransformation, *, platform: str = "cpu") -> ApplyUpdate:
    """Returns the program `(state, accumulator, update) -> (state, accumulator, loss of each)`.

    The accumulator of those that moved begins anew. An expert whose loss or gradient is not finite stays
    where it is, from this step on. The old state and accumulator are donated.
    """

    move = _mover(optimizer)

    def one(
        state: GroupState, accumulator: GradAccumulator, update: SlotUpdates
    ) -> tuple[GroupState, GradAccumulator]:
        rest = jax.tree.map(lambda leaf: jnp.where(update.active, 0, leaf), accumulator)
        return move(state, accumulator, update), rest

    def every(
        state: GroupState, accumulator: GradAccumulator, update: SlotUpdates
    ) -> tuple[GroupState, GradAccumulator, Array]:
        like = jax.tree.leaves(state.params)[0]
        if traced_platform() == "tpu" and sharding.experts_of_part(state.params) > 1:
            of_part = partial(_map_active, one)
            run = sharding.shard_map_over_experts(of_part, state, like.shape[0])
            found = run(state, (), update, accumulator)
        else:
            found = jax.vmap(one)(state, accumulator, update)
        moved, rest = sharding.constrain_sharding_like(found, like)
        return moved, rest, accumulator.loss

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
    going = jnp.full(1, ALL_FINITE, jnp.int32)
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

    def total(params: Params, base: Params | Frozen | None, rows: Rows) -> tuple[Array, Array]:
        count = jax.tree.leaves(params)[0].shape[0]
        if isinstance(base, Frozen):
            params = paths.unflatten({**paths.flatten(base.experts), **paths.flatten(params)})
            base = base.base
        # One expert is not gathered: it serves all rows. But soft prompts stand before segments.
        gathers = count > 1 or kind == "prompt"
        experts, index = (params, rows.slot) if gathers else (jax.tree.map(lambda p: p[0], params), None)
        frozen: Any = experts if kind == "full" else base
        adapters = None if kind == "full" else experts
        logits = model.apply({"params": frozen}, rows, adapters, index, rngs=rngs, method=_logits)
        segment = jnp.maximum(rows.target_segments - 1, 0)
        losses = token_losses(jnp.asarray(logits), rows.targets, config)
        losses = losses * jnp.take_along_axis(_join_folded_prompts(rows.share, rows), segment, axis=1)
        slots = _join_folded_prompts(rows.slot, rows)
        slot = jnp.take_along_axis(slots, segment, axis=1).reshape(-1)
        if rows.choices is None:
            each = jax.ops.segment_sum(losses.reshape(-1), slot, count)
        else:
            wrong, chosen = _choice_terms(jnp.asarray(logits), segment, rows, rows.choices, config)
            losses = jnp.where(rows.choices.target_choices == 1, losses, wrong)
            each = jax.ops.segment_sum(losses.reshape(-1), slot, count)
            each = each + jax.ops.segment_sum(chosen.reshape(-1), slots.reshape(-1), count)
        return each.sum(), each

    return total


def _gradient(network: T5Config, kind: str, loss: LossConfig) -> Callable[..., GradAccumulator]:
    """Returns `(params, base, rows) -> gradient and loss of each`."""
    gradient = jax.grad(_total_loss(network, kind, loss, train=True), has_aux=True)
    return lambda params, base, rows: GradAccumulator(*gradient(params, base, rows))


def _mover(optimizer: optax.GradientTransformation) -> Callable[..., GroupState]:
    """Returns `(state, accumulator, update) -> state`, of one expert: it moves if its step is complete."""

    def move(state: GroupState, accumulator: GradAccumulator, update: SlotUpdates) -> GroupState:
        finite = jnp.isfinite(accumulator.loss) & jnp.isfinite(optax.tree.norm(accumulator.gradient))
        moving = update.active & (state.stopped == ALL_FINITE)
        direction, moments = optimizer.update(accumulator.gradient, state.moments, state.params)
        params = jax.tree.map(lambda p, d: p - update.learning_rate * d, state.params, direction)
        stopped = jnp.where(moving & ~finite, update.step, state.stopped)
        params, moments = jax.tree.map(
            lambda new, old: jnp.where(moving & finite, new, old),
            (params, moments),
            (state.params, state.moments),
        )
        return GroupState(params, moments, stopped)

    return move


def _map_active(
    one: Callable[..., Any], state: GroupState, _: Any, update: SlotUpdates, accumulator: GradAccumulator
) -> tuple[GroupState, GradAccumulator]:
    """Returns `one(state, accumulator, update)` of every expert, where it changes only those that are active.

    Only these are read and written, one after the other: a batch completes the steps of few experts. XLA's
    backends for CPUs and GPUs are faster with all experts in one pass.
    """
    before = jnp.cumsum(update.active)

    def step(number: Array, stacks: Any) -> Any:
        place = jnp.argmax(before > number)
        own, asked = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, place, keepdims=False), (stacks, update)
        )
        return jax.tree.map(
            lambda leaf, new: jax.lax.dynamic_update_index_in_dim(leaf, new, place, 0),
            stacks,
            one(*own, asked),
        )

    return jax.lax.fori_loop(0, before[-1], step, (state, accumulator))


def _choice_terms(
    logits: Float[Array, "_ T V"],
    segment: Int[Array, "_ T"],
    rows: Rows,
    choices: ChoiceRows,
    config: LossConfig,
) -> tuple[Float[Array, "_ T"], Float[Array, "_ _"]]:
    """Returns T-Few's unlikelihood of every target token, and the loss of the choices of every segment."""
    logp, is_wrong = -token_losses(logits, rows.targets), choices.target_choices > 1
    share = jnp.take_along_axis(_join_folded_prompts(choices.wrong_choice_weight, rows), segment, axis=1)
    wrong = jnp.where(is_wrong, unlikelihood_losses(logp, is_wrong), 0.0) * share * config.unlikely_loss
    lengths = _join_folded_prompts(choices.lengths, rows)
    _, segments, most = lengths.shape
    # Summed by a product, for rows that lie on different devices.
    place = segment * most + choices.target_choices - 1
    is_of = place[..., None] == jnp.arange(segments * most, dtype=jnp.int32)[None, None]
    sums = jnp.einsum("bt,btk->bk", logp, is_of.astype(logp.dtype), precision="highest")
    chosen = choice_losses(sums.reshape(lengths.shape), lengths, config.length_norm)
    return wrong, chosen * _join_folded_prompts(choices.row_weight, rows) * config.mc_loss


def _logits(model: T5, rows: Rows, expert: Params | None, slot: Any) -> Float[Array, "_ T V"]:
    """Returns the logits of the targets; the decoder reads the prompts that are folded as one."""
    encoded = model.encode(rows.prompts, expert, slot, rows.prompt_segments, rows.seeds)
    count, segments_of_row = rows.prompts.shape[0], rows.share.shape[1]
    before = np.arange(count, dtype=np.int32)[:, None] % (count // rows.targets.shape[0]) * segments_of_row
    segments = jnp.where(rows.prompt_segments > 0, rows.prompt_segments + before, 0)
    return model.decode(
        _join_folded_prompts(encoded, rows),
        _join_folded_prompts(rows.prompts, rows),
        rows.targets[:, None],
        expert,
        None if slot is None else _join_folded_prompts(slot, rows),
        _join_folded_prompts(segments, rows),
        rows.target_segments[:, None],
        _join_folded_prompts(rows.seeds, rows),
        None if rows.choices is None else rows.choices.target_choices[:, None],
    )[:, 0]


def _join_folded_prompts(array: Array, rows: Rows) -> Array:
    """Joins the prompts' rows [B, N, …] whose targets are one row: [B / folded, folded N, …]."""
    array = jnp.asarray(array)
    return array.reshape(rows.targets.shape[0], -1, *array.shape[2:])


def _shard_map_over_experts(add: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function with every expert's rows on its own part of the mesh that the experts lie on."""

    def on_mesh(params: Params, base: Params | Frozen | None, rows: Rows, total: Any) -> Any:
        leaf = jax.tree.leaves(params)[0]
        gates = isinstance(base, Frozen)
        frozen = Frozen._make((sharding.REPLICATED, sharding.BY_EXPERT)) if gates else None
        run = sharding.shard_map_over_experts(add, params, leaf.shape[0], frozen=frozen)
        return sharding.constrain_sharding_like(run(params, base, rows, total), leaf)

    return on_mesh
