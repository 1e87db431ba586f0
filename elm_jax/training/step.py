"""The grouped step: E experts advance in one program, over one frozen base.

Examples of all experts stand packed in the rows of a batch; every segment names the place of its expert,
which is gathered for it, so the products with the base run over the tokens of all experts at once. Gradients
are added up over as many batches as an expert's step takes, each example weighed by its share of the expert's
loss; then the expert moves by its own rate. No gradient, clipping or moment ever meets a neighbour's.
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
from elm_jax.training.loss import token_losses

GOING = -1


class GroupState(NamedTuple):
    """What a group carries from step to step; every leaf has a leading axis E."""

    params: Params
    moments: Any
    stopped: Int[Array, " E"]  # the step whose loss or gradient was not finite, GOING where all were


class Rows(NamedTuple):
    """A batch: packed rows with segments 1 to G, and 0 on padding, of any of the group's experts.

    Targets have a row for every `folded` rows of prompts, whose segments they count on: 1 to G are those of
    the first, G + 1 to 2 G those of the second.
    """

    prompts: Prompts
    prompt_segments: Prompts
    targets: Int[Array, "_ T"]
    target_segments: Int[Array, "_ T"]
    place: ExpertOfSegment  # of the segment's expert, among those on its part of the mesh
    share: Float[Array, "B G"]  # 1 / the real target tokens of the expert's step
    seeds: Seeds


OF_TARGETS = ("targets", "target_segments")


class Sums(NamedTuple):
    """What batches have added up so far, for every expert since it last moved."""

    gradient: Params
    loss: Float[Array, " E"]


class Move(NamedTuple):
    """How experts move; those whose step is not yet whole are not `active` and do not."""

    rate: Float[Array, " E"]
    active: Bool[Array, " E"]
    step: Int[Array, " E"]  # of the expert's own, told where its loss is not finite


Gather = Callable[[Params, Params | None, Rows, Sums], Sums]
Measure = Callable[[Params, Params | None, Rows, Float[Array, " E"]], Float[Array, " E"]]
Begin = Callable[[Any, Params], GroupState]
Advance = Callable[[GroupState, Sums, Move], tuple[GroupState, Sums, Float[Array, " E"]]]


def stack(trees: list[Params]) -> Params:
    """Puts E trees of one shape into one with a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def start(params: Params, optimizer: optax.GradientTransformation) -> GroupState:
    """Returns the state before the first step of stacked experts [E, …]."""
    places = jax.tree.leaves(params)[0].shape[0]
    return GroupState(params, jax.vmap(optimizer.init)(params), jnp.full(places, GOING, jnp.int32))


@partial(jax.jit, keep_unused=True)  # what tells it the devices
def nothing(params: Params) -> Sums:
    """Returns the sums before the first batch."""
    leaf = jax.tree.leaves(params)[0]
    none = Sums(jax.tree.map(jnp.zeros_like, params), jnp.zeros(leaf.shape[0], jnp.float32))
    return sharding.constrain_sharding_like(none, leaf)


def seeds(seed: int, step: int, rows: int) -> np.ndarray:
    """Returns what dropout in the rows of one step of an expert is drawn from, and from nothing else."""
    return np.random.default_rng((seed, step)).integers(0, 2**32, rows, np.uint32)


@lru_cache(maxsize=16)
def gather(
    config: T5Config,
    kind: str,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    platform: str = "cpu",
) -> Gather:
    """Returns the function `(params, base, rows, sums) -> sums` that adds a batch; the old sums are given up.

    Parameters are those of E experts, [E, …]; full ones train one to a part of the mesh, for no row has a
    network of its own, and take no base.
    """
    total = _total(config, kind, train=True, z_loss=z_loss, label_smoothing=label_smoothing)

    def add(params: Params, base: Params | None, rows: Rows, sums: Sums) -> Sums:
        gradient, loss = jax.grad(total, has_aux=True)(params, base, rows)
        return jax.tree.map(jnp.add, sums, Sums(gradient, loss))

    return jit(_apart(add), platform=platform, donate_argnums=3)


@lru_cache(maxsize=16)
def measure(config: T5Config, kind: str, *, platform: str = "cpu") -> Measure:
    """Returns the function `(params, base, rows, loss) -> loss` that adds a batch's plain loss."""
    total = _total(config, kind, train=False)

    def add(params: Params, base: Params | None, rows: Rows, loss: Array) -> Array:
        return loss + total(params, base, rows)[1]

    return jit(_apart(add), platform=platform)


@lru_cache(maxsize=16)
def advance(optimizer: optax.GradientTransformation, *, platform: str = "cpu") -> Advance:
    """Returns the function `(state, sums, move) -> (state, sums, loss of each)`; the old two are given up.

    The sums of those who moved begin anew. An expert whose loss or gradient is not finite stays where it is,
    from this step on.
    """

    def one(state: GroupState, sums: Sums, move: Move) -> tuple[GroupState, Sums, Array]:
        finite = jnp.isfinite(sums.loss) & jnp.isfinite(optax.tree.norm(sums.gradient))
        going = move.active & (state.stopped == GOING)
        direction, moments = optimizer.update(sums.gradient, state.moments, state.params)
        params = jax.tree.map(lambda p, d: p - move.rate * d, state.params, direction)
        stopped = jnp.where(going & ~finite, move.step, state.stopped)
        kept = jax.tree.map(
            lambda new, old: jnp.where(going & finite, new, old),
            (params, moments),
            (state.params, state.moments),
        )
        rest = jax.tree.map(lambda leaf: jnp.where(move.active, 0, leaf), sums)
        return GroupState(kept[0], kept[1], stopped), rest, sums.loss

    def every(state: GroupState, sums: Sums, move: Move) -> tuple[GroupState, Sums, Array]:
        moved, rest, loss = jax.vmap(one)(state, sums, move)
        on = jax.tree.leaves(state.params)[0]
        return sharding.constrain_sharding_like(moved, on), sharding.constrain_sharding_like(rest, on), loss

    return jit(every, platform=platform, donate_argnums=(0, 1))


@lru_cache(maxsize=16)
def begin(
    kind: str,
    options: tuple[tuple[str, Any], ...],
    optimizer: optax.GradientTransformation,
    *,
    platform: str = "cpu",
) -> Begin:
    """Returns the function `(seeds, base) -> state` of fresh experts, each a function of its seed alone."""

    def fresh(seeds: Array, base: Params) -> GroupState:
        def one(seed: Array) -> Params:
            return ex.init_expert(kind, jax.random.key(seed), base, dict(options))

        state = start(jax.vmap(one)(seeds), optimizer)
        return sharding.constrain_sharding_like(state, jax.tree.leaves(base)[0])

    return jit(fresh, platform=platform)


@partial(jax.jit, donate_argnums=0)
def put(tree: Any, place: Int[Array, ""], one: Any) -> Any:
    """Returns stacked trees with the one of a stack of one at a place."""
    return sharding.constrain_sharding_like(sharding.put_expert(tree, one, place), jax.tree.leaves(tree)[0])


@partial(jax.jit, donate_argnums=(0, 1))
def taken_up(state: GroupState, sums: Sums, place: Int[Array, ""]) -> tuple[GroupState, Sums]:
    """Lets the expert at a place that was stopped go on from where it is, with no sums."""
    leaf = jax.tree.leaves(state.params)[0]
    none = jax.tree.map(lambda whole: jnp.zeros((1, *whole.shape[1:]), whole.dtype), sums)
    going = jnp.full(1, GOING, jnp.int32)
    state = state._replace(stopped=sharding.put_expert(jnp.asarray(state.stopped), going, place))
    return sharding.constrain_sharding_like(state, leaf), sharding.constrain_sharding_like(
        sharding.put_expert(sums, none, place), leaf
    )


@jax.jit
def taken(tree: Any, place: Int[Array, ""]) -> Any:
    """Returns what stands at one place of stacked trees, as a stack of one."""
    return sharding.take_expert(tree, place)


def _total(config: T5Config, kind: str, *, train: bool, **options: float) -> Callable[..., Any]:
    """Returns `(params, base, rows) -> (loss of all experts together, loss of each)`."""
    network = T5(config, train=train and config.dropout_rate > 0)
    # What tells layers apart; what tells rows and steps apart comes with the rows.
    rngs: Mapping[str, Any] = {"dropout": jax.random.key(0, impl="threefry2x32")} if network.train else {}

    def total(params: Params, base: Params | None, rows: Rows) -> tuple[Array, Array]:
        places = jax.tree.leaves(params)[0].shape[0]
        # One expert is not gathered: it serves all rows.
        owned, index = (params, rows.place) if places > 1 else (jax.tree.map(lambda p: p[0], params), None)
        placed: Any = owned if kind == "full" else base
        beside = None if kind == "full" else owned
        logits = network.apply({"params": placed}, rows, beside, index, rngs=rngs, method=_logits)
        slot = jnp.maximum(rows.target_segments - 1, 0)
        losses = token_losses(jnp.asarray(logits), rows.targets, **options)
        losses = losses * jnp.take_along_axis(_beside(rows.share, rows), slot, axis=1)
        place = jnp.take_along_axis(_beside(rows.place, rows), slot, axis=1)
        each = jax.ops.segment_sum(losses.reshape(-1), place.reshape(-1), places)
        return each.sum(), each

    return total


def _logits(network: T5, rows: Rows, expert: Params | None, place: Any) -> Float[Array, "_ T V"]:
    """Returns the logits of the targets; the decoder reads the prompts that are folded as one."""
    encoded = network.encode(rows.prompts, expert, place, rows.prompt_segments, rows.seeds)
    count, slots = rows.prompts.shape[0], rows.share.shape[1]
    before = np.arange(count, dtype=np.int32)[:, None] % (count // rows.targets.shape[0]) * slots
    segments = jnp.where(rows.prompt_segments > 0, rows.prompt_segments + before, 0)
    return network.decode(
        _beside(encoded, rows),
        _beside(rows.prompts, rows),
        rows.targets[:, None],
        expert,
        None if place is None else _beside(place, rows),
        _beside(segments, rows),
        rows.target_segments[:, None],
        _beside(rows.seeds, rows),
    )[:, 0]


def _beside(of_prompts: Array, rows: Rows) -> Array:
    """Returns what rows of prompts have, [B, N, …], one after another for the row of their targets."""
    of_prompts = jnp.asarray(of_prompts)
    return of_prompts.reshape(rows.targets.shape[0], -1, *of_prompts.shape[2:])


def _apart(add: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function with every expert's rows on its own part of the mesh that the experts lie on."""

    def on_mesh(params: Params, base: Params | None, rows: Rows, sums: Any) -> Any:
        leaf = jax.tree.leaves(params)[0]
        return sharding.constrain_sharding_like(
            sharding.shard_map_over_experts(add, params, leaf.shape[0])(params, base, rows, sums), leaf
        )

    return on_mesh
