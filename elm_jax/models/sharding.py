"""Sharding: how parameters, experts and rows lie on a mesh of devices, told by the names of their axes.

A mesh has four axes. `expert` keeps whole experts apart, which need nothing of one another. `data` splits
rows, and every device has all of the base. `fsdp` splits rows too and the base with them: a layer's kernels
are gathered when that layer runs. `tensor` splits the inside of layers: heads, feed-forward, vocabulary.

The network pins its activations to the mesh that its parameters lie on, which JAX tells in their types; where
they lie on one device, nothing is pinned. Left to itself XLA splits the width of activations as `fsdp` splits
the kernels, so that every device has all rows and adds them up over the mesh after every product.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from elm_jax.axes import Array
from elm_jax.models import products
from elm_jax.models.kinds import KERNELS, axes_of

TENSOR = ("tensor", "model")  # the second is T5X's name, under which our network may train too
Rules = Mapping[str, tuple[str, ...]]
RULES: Rules = {
    "experts": ("expert",),
    "batch": ("expert", "data", "fsdp"),
    "vocab": TENSOR,
    "mlp": TENSOR,
    "heads": TENSOR,
    "joined_kv": TENSOR,
    "embed": ("fsdp",),
    "layers": (),  # a scan takes one after the other
    "rank": (),  # narrow on purpose
    "relpos_buckets": (),
}
"""The axes of a mesh that split a logical axis: T5X's names, and our own `experts` and `rank`."""


def spec(
    on: Mesh | AbstractMesh, axes: Sequence[str | None], shape: Sequence[int], rules: Rules = RULES
) -> PartitionSpec:
    """Returns how an array with these logical axes is split; what the mesh does not divide stays whole.

    An axis of the mesh splits the first axis of the array that asks for it, and no other.
    """
    wanted = {place: rules[axis] for place, axis in enumerate(axes) if axis}
    return PartitionSpec(*_split(on, shape, wanted))


def shardings(on: Mesh | AbstractMesh, tree: Any, *, experts: bool = False, rules: Rules = RULES) -> Any:
    """Returns a sharding for every leaf of a base, an expert, or what an optimiser keeps of one.

    Leaves are arrays or their shapes. With `experts` they belong to stacked experts and have one more axis in
    front. What an optimiser keeps lies as its parameter does, where it has that shape.
    """

    def of_leaf(keys: Sequence[Any], leaf: Any) -> NamedSharding:
        path = "/".join(str(key.key) for key in keys if isinstance(key, jax.tree_util.DictKey))
        front = ("experts",) if experts else ()
        axes = (*front, *_axes(path)) if path else front
        if len(axes) != leaf.ndim:
            axes = front
        return NamedSharding(on, spec(on, axes + (None,) * (leaf.ndim - len(axes)), leaf.shape, rules))

    return jax.tree_util.tree_map_with_path(of_leaf, tree)


def sharding_of(on: Mesh, rules: Rules = RULES) -> Callable[[str, Sequence[int]], NamedSharding]:
    """Returns the function from path and shape of a base's parameter to its sharding: what a reader takes."""
    return lambda path, shape: NamedSharding(on, spec(on, _axes(path), shape, rules))


def batch_shardings(on: Mesh | AbstractMesh, batch: Any, *, rules: Rules = RULES) -> Any:
    """Returns a sharding for every array of a batch, whose rows are split over all axes but `tensor`."""

    def of_leaf(leaf: Any) -> NamedSharding:
        axes = ("batch", *(None,) * leaf.ndim)[: leaf.ndim]
        return NamedSharding(on, spec(on, axes, leaf.shape, rules))

    return jax.tree.map(of_leaf, batch)


def mesh_of(tree: Any) -> Mesh | None:
    """Returns the mesh of several devices that a tree of parameters lies on, if it does."""
    leaf = jax.tree.leaves(tree)[0]
    if not isinstance(leaf, jax.Array) or not isinstance(leaf.sharding, NamedSharding):
        return None
    on = leaf.sharding.mesh
    return on if isinstance(on, Mesh) and on.size > 1 else None


def row_parts(sizes: Mapping[str, int]) -> int:
    """Returns how many parts a mesh of these sizes splits the rows of a batch into."""
    return math.prod(sizes.get(axis, 1) for axis in RULES["batch"])


def place(tree: Any, to: Any) -> Any:
    """Returns a tree laid out on its devices; `to` has a sharding for every leaf, or is one for all."""
    return jax.device_put(tree, to)


def lookup(table: Float[Array, "V D"], tokens: Int[Array, "*places"]) -> Float[Array, "*places D"]:
    """Returns the embeddings of tokens from their table, which on a mesh is never gathered.

    Every device looks all rows of its `fsdp` neighbours up in its part of the width; then they exchange.
    """
    on, split = _mesh_of(table), RULES["embed"]
    rows = tuple(axis for axis in RULES["batch"] if axis not in split)
    found = jnp.take(table, _pin(tokens, on, {0: rows}), axis=0)
    return _pin(_pin(found, on, {-1: split, 0: rows}), on, {-1: (), 0: RULES["batch"]})


def product(
    x: Float[Array, "*places I"], kernel: Float[Array, "I O"], name: str
) -> Float[Array, "*places O"]:
    """Multiplies by the kernel of that name in the type of x.

    On a mesh the rows stay apart, and a kernel that `fsdp` splits is gathered for this one product. The
    output layer is as large as many layers: of it no device ever has all. Rows meet instead, and every device
    makes the logits of its part of the vocabulary.
    """
    on, wide = _mesh_of(kernel), KERNELS[name][1] == "vocab"
    tokens = _split(on, kernel.shape, {1: RULES["vocab"] + RULES["embed"]})[1] if wide else ()
    rows = tuple(axis for axis in RULES["batch"] if axis not in tokens)
    if wide:
        kernel = _pin(kernel, on, {1: tokens, 0: ()})
    x = _pin(x, on, {0: rows})
    # One flat product: with batched ones a gradient takes 1.4 times as long on XLA's CPU backend.
    y = products.einsum("ni,io->no", x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], -1)
    return _pin(y, on, {-1: tokens, 0: rows}) if wide else y


def gathered(stack: Array, of: Int[Array, "B G"], *layer: Any) -> Float[Array, "B G *axes"]:
    """Gives every segment its expert's own out of a stack [E, …], or out of one layer of [E, L, …].

    On a mesh every device has that layer whole for a moment. Within `apart` XLA's partitioner, left to
    itself, ends the process over a gather from what `fsdp` and `tensor` split.
    """
    on = _mesh_of(stack)
    if any(size > 1 for size in on.shape.values()):
        stack, layer = stack[(slice(None), *layer)], ()
        stack = _pin(stack, on, dict.fromkeys(range(1, stack.ndim), ()))
    return jnp.asarray(stack).at[(of, *layer)].get(mode="fill")  # an index too large gives NaN


def apart(add: Callable[..., Any], params: Any, experts: int) -> Callable[..., Any]:
    """Returns a group's program, `(params, base, rows, sums) -> sums`, with every expert on its own devices.

    On a mesh with an `expert` axis each of its parts runs the rows of its own experts, so that nothing can
    travel between them; that the experts' parameters lie there is how the mesh is known.
    """
    on = _mesh_of(jax.tree.leaves(params)[0])
    parts = on.shape.get("expert", 1)
    if parts == 1 or experts % parts:
        return add
    return jax.shard_map(
        add,
        mesh=on,
        in_specs=(_APART, _SAME, _APART, _APART),
        out_specs=_APART,
        axis_names={"expert"},
        check_vma=False,
    )


def put_expert(stack: Any, one: Any, place: Int[Array, ""]) -> Any:
    """Returns stacked trees, leaves [E, …], with the one of a stack of one at a place.

    On a mesh the device that has the place writes there, and nothing travels.
    """

    def put(whole: Array, new: Array, at: Array, inside: Array) -> Array:
        at = jnp.clip(at, 0, whole.shape[0] - 1)
        before = jax.lax.dynamic_slice_in_dim(whole, at, 1)
        return jax.lax.dynamic_update_slice_in_dim(whole, jnp.where(inside, new, before), at, 0)

    def own(stack: Any, one: Any, place: Array) -> Any:
        return jax.tree.map(lambda whole, new: put(whole, new, *_own_place(whole, place, parts)), stack, one)

    parts, mapped = _expert_parts(stack)
    if parts == 1:
        return own(stack, one, place)
    run = jax.shard_map(
        own,
        mesh=mapped,
        in_specs=(_APART, _SAME, _SAME),
        out_specs=_APART,
        axis_names={"expert"},
        check_vma=False,
    )
    return run(stack, one, place)


def take_expert(stack: Any, place: Int[Array, ""]) -> Any:
    """Returns what stands at one place of stacked trees, as a stack of one.

    On a mesh the device that has the place sends it to all, bit for bit.
    """

    def take(whole: Array, at: Array, inside: Array) -> Array:
        found = jax.lax.dynamic_slice_in_dim(whole, jnp.clip(at, 0, whole.shape[0] - 1), 1)
        if parts == 1:
            return found
        bits = jax.lax.bitcast_convert_type(found, f"uint{8 * found.dtype.itemsize}")
        bits = jax.lax.psum(jnp.where(inside, bits, 0), "expert")
        return jax.lax.bitcast_convert_type(bits, found.dtype)

    def own(stack: Any, place: Array) -> Any:
        return jax.tree.map(lambda whole: take(whole, *_own_place(whole, place, parts)), stack)

    parts, mapped = _expert_parts(stack)
    if parts == 1:
        return own(stack, place)
    run = jax.shard_map(
        own, mesh=mapped, in_specs=(_APART, _SAME), out_specs=_SAME, axis_names={"expert"}, check_vma=False
    )
    return run(stack, place)


_APART, _SAME = PartitionSpec("expert"), PartitionSpec()


def _expert_parts(stack: Any) -> tuple[int, AbstractMesh]:
    """Returns how many parts of a mesh have experts of a stack, and the mesh."""
    leaf = jax.tree.leaves(stack)[0]
    on = _mesh_of(leaf)
    parts = on.shape.get("expert", 1)
    return (1 if leaf.shape[0] % parts else parts), on


def _own_place(whole: Array, place: Array, parts: int) -> tuple[Array, Array]:
    """Returns a place as a device counts its own experts, and whether it is among them."""
    if parts == 1:
        return place, jnp.array(True)
    at = place - jax.lax.axis_index("expert") * whole.shape[0]
    return at, (at >= 0) & (at < whole.shape[0])


def kept(tree: Any, like: Array) -> Any:
    """Returns what belongs to stacked experts, pinned to lie on the mesh of `like` as it is to stay there."""
    on = _mesh_of(like)
    if not any(size > 1 for size in on.shape.values()):
        return tree
    return jax.lax.with_sharding_constraint(tree, shardings(on, tree, experts=True))


def _axes(path: str) -> tuple[str | None, ...]:
    """Returns the logical axes of a leaf; a vector along the width has none, for gathering it costs more."""
    axes = axes_of(path)
    return tuple(None for _ in axes) if set(axes) <= {"layers", "embed"} else axes


def _mesh_of(parameter: Array) -> AbstractMesh:
    """Returns the mesh that a parameter lies on, an empty one where it lies on one device."""
    return jax.typeof(parameter).sharding.mesh


def _split(
    on: Mesh | AbstractMesh, shape: Sequence[int], wanted: Mapping[int, tuple[str, ...]]
) -> list[tuple[str, ...]]:
    """Returns the axes of the mesh that split each axis of an array; the first of `wanted` gets them."""
    parts: list[tuple[str, ...]] = [()] * len(shape)
    taken: set[str] = set()
    for place, axes in wanted.items():
        for axis in axes:
            size = on.shape.get(axis, 1)
            if axis not in taken and size > 1 and not shape[place] % (_size(on, parts[place]) * size):
                parts[place] += (axis,)
                taken.add(axis)
    return parts


def _size(on: Mesh | AbstractMesh, axes: Sequence[str]) -> int:
    return math.prod(on.shape[axis] for axis in axes)


def _pin(x: Array, on: AbstractMesh, wanted: Mapping[int, tuple[str, ...]]) -> Array:
    """Pins axes of x, by their numbers, to axes of the mesh, and leaves the others to the compiler."""
    # Within `apart` the axis of experts is not the compiler's; outside of a program nothing is.
    free = {axis for axis, kind in zip(on.axis_names, on.axis_types, strict=True) if kind == AxisType.Auto}
    if not isinstance(x, Tracer) or not any(on.shape[axis] > 1 for axis in free):
        return x
    wanted = {place % x.ndim: tuple(a for a in axes if a in free) for place, axes in wanted.items()}
    parts: list[Any] = [PartitionSpec.UNCONSTRAINED] * x.ndim
    for place, part in enumerate(_split(on, x.shape, wanted)):
        if place in wanted:
            parts[place] = part
    return jax.lax.with_sharding_constraint(x, NamedSharding(on, PartitionSpec(*parts)))
