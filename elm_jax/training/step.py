"""The grouped step: E experts advance by one step in one program, over one frozen base.

The step of a single expert is written once and mapped over the group, so every expert has its own rows,
learning rate, dropout and end, and its gradient, clipping and optimiser state never meet a neighbour's. The
base is not mapped: its products run over the rows of all experts at once.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool, Float, Int

from elm_jax.axes import Array
from elm_jax.models import experts as ex
from elm_jax.models import sharding
from elm_jax.models.sizes import T5Config
from elm_jax.models.t5 import T5
from elm_jax.records import Params
from elm_jax.training.loss import answer_loss


class GroupState(NamedTuple):
    """What a group carries from step to step; every leaf has a leading axis E."""

    params: Params
    moments: Any


class GroupBatch(NamedTuple):
    """The rows of one step: `active` is False for an expert that has ended and must not move."""

    prompts: Int[Array, "E B S"]
    targets: Int[Array, "E B T"]
    rate: Float[Array, " E"]
    dropout: Array  # E keys
    active: Bool[Array, " E"]


def stack(trees: list[Params]) -> Params:
    """Puts E trees of one shape into one with a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack(tree: Params, index: int) -> Params:
    """Returns one tree of a stack."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def start(params: Params, optimizer: optax.GradientTransformation) -> GroupState:
    """Returns the state before the first step of stacked experts [E, …]."""
    return GroupState(params, jax.vmap(optimizer.init)(params))


def dropout_keys(seeds: Int[Array, " E"], step: Int[Array, " E"]) -> jax.Array:
    """Returns a dropout key for each expert that depends on its own seed and step alone."""
    return jax.vmap(lambda seed, at: jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), at))(
        seeds, step
    )


@lru_cache(maxsize=16)
def compiled(
    config: T5Config,
    kind: str,
    optimizer: optax.GradientTransformation,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> Callable[[GroupState, Params, GroupBatch], tuple[GroupState, Float[Array, " E"]]]:
    """Returns the step `(state, base, batch) -> (state, loss of each expert)`; the old state is given up."""
    network = T5(config, train=config.dropout_rate > 0)

    def loss(owned: Params, base: Params, prompts: Array, targets: Array, key: jax.Array) -> Array:
        params, beside = ex.place(kind, base, owned)
        logits = network.apply({"params": params}, prompts, targets[:, None], beside, rngs={"dropout": key})
        return answer_loss(jnp.asarray(logits)[:, 0], targets, z_loss=z_loss, label_smoothing=label_smoothing)

    def one(state: GroupState, base: Params, batch: GroupBatch) -> tuple[GroupState, Array]:
        value, gradient = jax.value_and_grad(loss)(
            state.params, base, batch.prompts, batch.targets, batch.dropout
        )
        direction, moments = optimizer.update(gradient, state.moments, state.params)
        params = jax.tree.map(lambda p, d: p - batch.rate * d, state.params, direction)
        moved = GroupState(params, moments)
        return jax.tree.map(lambda new, old: jnp.where(batch.active, new, old), moved, state), value

    def group(state: GroupState, base: Params, batch: GroupBatch) -> tuple[GroupState, Array]:
        if batch.rate.shape[0] > 1:
            every = jax.vmap(one, in_axes=(0, None, 0))
            return sharding.apart(every, base, batch.rate.shape[0])(state, base, batch)
        # A group of one is not mapped: a batch dimension of 1 costs XLA's CPU backend a sixth of the step.
        alone = jax.tree.map(lambda leaf: leaf[0], (state, batch))
        return jax.tree.map(lambda leaf: leaf[None], one(alone[0], base, alone[1]))

    return jax.jit(group, donate_argnums=0)
