"""Plan: the memory that a base, its experts and their training take on one device, before any is bought.

Parameters, moments and gradients are counted from the shapes that the network and the kinds of experts make,
laid out as `models.sharding` lays them out. What stands between the layers is estimated, see `activations`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from elm_jax.engine.batches import MOST_SEGMENTS
from elm_jax.engine.evaluate import BATCH_TOKENS
from elm_jax.errors import UserError
from elm_jax.models import experts as ex
from elm_jax.models import paths, sharding
from elm_jax.models.sizes import T5Config, size
from elm_jax.models.t5 import init_params
from elm_jax.runs import activations
from elm_jax.runs.slices import GB, Slice, slice_of
from elm_jax.training import optimizers, step
from elm_jax.weights.base import dtype_name

SLICES = ("v4-8", "v5e-256", "h200", "8xh100")


@dataclass(frozen=True)
class Work:
    """What is to be held and done; the base is held in the type that the network computes in."""

    network: T5Config
    experts: int = 0  # held at once, to score with
    kind: str = "bottleneck"
    options: Mapping[str, Any] = field(default_factory=dict)  # of the kind
    expert_dtype: str = "float32"  # of those held; training is always float32
    group: int = 32  # experts that train together
    train_tokens: int = 8192  # of a batch that trains, on all devices together
    prompt: int = 512  # tokens of a row, several examples or the longest
    answer: int = 128
    segments: int = MOST_SEGMENTS  # examples packed into a row that trains, at most
    optimizer: str = "adamw"
    batch_tokens: int = BATCH_TOKENS  # scored at once on a device


@dataclass(frozen=True)
class Need:
    """Bytes on one device."""

    base: int
    experts: int
    scoring: int  # what lies between when scoring
    state: int  # parameters and moments of the group that trains
    gradients: int  # added up until an expert moves
    activations: int  # what lies between in a batch or a move, kept for all layers
    activations_remat: int  # the same where a layer is computed again for its gradient


@dataclass(frozen=True)
class Share:
    """A slice, the mesh made of it, and what one of its devices needs."""

    slice: Slice
    mesh: Mapping[str, int]
    need: Need


@dataclass(frozen=True)
class Plan:
    """What a work needs in all, as on one device without end, and on slices."""

    work: Work
    parameters: int  # of the base
    expert_parameters: int  # of one expert
    in_all: Need
    shares: tuple[Share, ...]


def plan(work: Work, slices: Sequence[str] = SLICES, mesh: Mapping[str, int] | None = None) -> Plan:
    """Returns what a work needs on one device of each slice.

    Without a `mesh`, sizes by axis as `sharding.mesh` takes them, it is the one with the least `fsdp` that
    everything fits: experts apart as far as they go, the rest data. Raises a UserError for an unknown slice,
    a mesh that a slice's devices do not make, or less than one of anything.
    """
    for name in ("group", "train_tokens", "prompt", "answer", "segments", "batch_tokens"):
        if getattr(work, name) < 1:
            raise UserError(f"At least 1 is wanted for {name}, but {getattr(work, name)} came.")
    dtype_name(work.expert_dtype)
    if work.experts < 0:
        raise UserError(f"A number of experts is wanted, 0 or more, but {work.experts} came.")
    base, expert = shapes(work)
    return Plan(
        work,
        sum(leaf.size for leaf in jax.tree.leaves(base)),
        sum(leaf.size for leaf in jax.tree.leaves(expert)),
        need(work, sharding.fitted(1, **dict.fromkeys(sharding.AXES, 1))),
        tuple(_share(work, slice_of(name), mesh) for name in slices),
    )


def network(name: str, dtype: str) -> T5Config:
    """Returns the network of a size by name, its base held and computed with in `dtype`."""
    return size(name, dtype=str(dtype_name(dtype)))


def shapes(work: Work) -> tuple[Any, Any]:
    """Returns the shapes of a work's base and of one fresh expert, as the network and the kind make them."""
    return _shapes(work.network, work.kind, tuple(sorted(work.options.items())))


def need(work: Work, mesh: Mapping[str, int]) -> Need:
    """Returns what one device of a mesh of these sizes needs for a work.

    The rows of a batch and the experts of a group are multiples of the parts that they are split into, as
    `engine` has them; of full experts a part has one.
    """
    on = AbstractMesh(
        tuple(mesh[axis] for axis in sharding.AXES),
        sharding.AXES,
        axis_types=(AxisType.Auto,) * len(sharding.AXES),
    )
    base, expert = shapes(work)
    parts, network, where = mesh["expert"], work.network, (work.prompt, work.answer, mesh["tensor"])
    places = parts if work.kind == "full" else -(-work.group // parts) * parts
    stacked = _stacked(expert, places)
    state = jax.eval_shape(lambda params: step.start(params, optimizers.optimizer(work.optimizer)), stacked)
    scored_with = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(work.expert_dtype)),
        _stacked(expert, work.experts),
    )
    sums = jax.eval_shape(step.nothing, stacked)
    gradient = _bytes(sums.gradient, sharding.shardings(on, sums.gradient, experts=True))
    rows = max(1, work.train_tokens // (work.prompt + work.answer) // sharding.row_parts(mesh))
    beside = _gathered(base, network, mesh)
    scored = max(1, work.batch_tokens // (work.prompt + work.answer))
    # A batch of rows has a layer's part of every row's expert beside the stack of all.
    whole = sum(leaf.size * jnp.dtype(work.expert_dtype).itemsize for leaf in jax.tree.leaves(expert))
    own = scored * whole // (network.num_encoder_layers + network.num_decoder_layers) * (work.experts > 0)

    def between(network: T5Config) -> int:
        batch = gradient + beside + activations.training(network, rows, *where)
        if places > parts:  # a single one is not gathered: it serves all rows
            batch += activations.gathered(network, expert, rows, work.segments, work.prompt, work.answer)
        # No batch is at work while experts move: a direction, and parameters and moments before they stay.
        return max(batch, 3 * gradient)

    return Need(
        base=_bytes(base, sharding.shardings(on, base)),
        experts=_bytes(scored_with, sharding.shardings(on, scored_with, experts=True)) if work.experts else 0,
        scoring=beside + own + activations.scoring(network, scored, *where),
        state=_bytes(state, sharding.shardings(on, state, experts=True)),
        gradients=_bytes(sums, sharding.shardings(on, sums, experts=True)),
        activations=between(replace(network, remat=False)),
        activations_remat=between(replace(network, remat=True)),
    )


def held(need: Need) -> int:
    """Returns the bytes that training holds all the time."""
    return need.base + need.state + need.gradients


def verdict(exact: int, estimated: int, memory: int) -> str:
    """Returns whether bytes fit: "yes" even where the truth is twice the estimate, "perhaps" or "no"."""
    if exact + estimated > memory:
        return "no"
    return "yes" if exact + 2 * estimated <= memory else "perhaps"


def verdicts(share: Share) -> dict[str, str]:
    """Returns whether evaluation, training and training with remat fit one device of a slice."""
    need, memory = share.need, share.slice.memory
    trained = held(need)
    return {
        "evaluation": verdict(need.base + need.experts, need.scoring, memory),
        "training": verdict(trained, need.activations, memory),
        "training with remat": verdict(trained, need.activations_remat, memory),
    }


def _share(work: Work, devices: Slice, mesh: Mapping[str, int] | None) -> Share:
    if mesh is not None:
        sizes = sharding.fitted(devices.devices, **(dict.fromkeys(sharding.AXES, 1) | dict(mesh)))
        return Share(devices, sizes, need(work, sizes))
    shares = []
    for fsdp in range(1, devices.devices + 1):
        if devices.devices % fsdp:
            continue
        # Full experts train one by one; of others no part may have more places than it needs.
        expert = 1 if work.kind == "full" else math.gcd(work.group, devices.devices // fsdp)
        sizes = {"expert": expert, "data": devices.devices // fsdp // expert, "fsdp": fsdp, "tensor": 1}
        shares.append(Share(devices, sizes, need(work, sizes)))
        fits = verdicts(shares[-1])
        if fits["evaluation"] == fits["training with remat"] == "yes":
            return shares[-1]
    return min(shares, key=lambda share: list(verdicts(share).values()).count("no"))


@lru_cache(maxsize=8)
def _shapes(network: T5Config, kind: str, options: tuple[tuple[str, Any], ...]) -> tuple[Any, Any]:
    made = jax.eval_shape(lambda: init_params(jax.random.key(0), network))
    base = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(network.dtype)), made)
    return base, jax.eval_shape(lambda base: ex.init(kind, jax.random.key(0), base, **dict(options)), base)


def _stacked(tree: Any, count: int) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), tree)


def _bytes(tree: Any, layout: Any) -> int:
    """Returns the bytes of the part of a tree of shapes that one device has."""
    return sum(
        math.prod(to.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, to in zip(jax.tree.leaves(tree), jax.tree.leaves(layout), strict=True)
    )


def _gathered(base: Any, network: T5Config, mesh: Mapping[str, int]) -> int:
    """Returns the bytes of what a device has of the base for a moment beside its own part.

    The kernels of one layer where `fsdp` splits them, and the output layer in float32.
    """
    flat = paths.flatten(base)
    layers: dict[str, int] = {}
    for path, leaf in flat.items():
        if "/layers/" in path and mesh["fsdp"] > 1:
            stack = path.partition("/")[0]
            layers[stack] = layers.get(stack, 0) + math.prod(leaf.shape[1:]) * leaf.dtype.itemsize
    output = network.vocab_size * network.emb_dim * 4 * (network.dtype != "float32")
    return max(layers.values(), default=0) // mesh["tensor"] + output // (mesh["fsdp"] * mesh["tensor"])


def gb(count: int) -> str:
    """Returns bytes in GB, as tables and sentences have them."""
    return f"{count / GB:.2f}" if count < 100 * GB else f"{count / GB:.0f}"


def mesh_told(sizes: Mapping[str, int]) -> str:
    """Returns the sizes of a mesh's axes as tables have them."""
    return " ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) or "one device"
