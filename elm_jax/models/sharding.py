"""Sharding: how parameters, experts and rows are split over a mesh of devices, by their logical axes.

A mesh has four axes. `expert` splits stacks into whole experts, which exchange nothing. `data` splits rows,
and every device has all of the base. `fsdp` splits rows and the base: a layer's kernels are gathered when
that layer runs. `tensor` splits the inside of layers: heads, feed-forward, vocabulary.

The network constrains its activations to the mesh of its parameters, which JAX has in their types; on one
device it constrains nothing. By default XLA would split the width of activations as `fsdp` splits kernels, so
that every device has all rows and sums them over the mesh after every product.
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
from elm_jax.models.expert_kinds import KERNEL_AXES, logical_axes

TENSOR = ("tensor", "model")  # the second is T5X's name, for training our network in T5X
Rules = Mapping[str, tuple[str, ...]]
RULES: Rules = {
    "experts": ("expert",),
    "batch": ("expert", "data", "fsdp"),
    "vocab": TENSOR,
    "mlp": TENSOR,
    "heads": TENSOR,
    "joined_kv": TENSOR,
    "embed": ("fsdp",),
    "layers": (),  # a scan reads one after the other
    "rank": (),  # too narrow to split
    "prompt": (),
    "projection": (),
    "relpos_buckets": (),
}
"""Logical axis -> the axes of a mesh that split it; T5X's names, and our `experts` and `rank`."""


def partition_spec(
    mesh: Mesh | AbstractMesh, axes: Sequence[str | None], shape: Sequence[int], rules: Rules = RULES
) -> PartitionSpec:
    """Returns how an array with these logical axes is split.

    An axis that the mesh does not divide is not split. An axis of the mesh splits at most one axis of the
    array, the first that its rule allows.
    """
    allowed = {place: rules[axis] for place, axis in enumerate(axes) if axis}
    return PartitionSpec(*_split_axes(mesh, shape, allowed))


def param_shardings(
    mesh: Mesh | AbstractMesh, tree: Any, *, experts: bool = False, rules: Rules = RULES
) -> Any:
    """Returns a sharding for every leaf of a base, an expert or an optimiser's state.

    A state is split as its parameter is, if it has that shape.

    Args:
        mesh: The mesh.
        tree: Arrays or their shapes.
        experts: Whether the leaves are those of stacked experts, with one more axis in front.
        rules: Logical axis -> axes of the mesh.
    """

    def of_leaf(keys: Sequence[Any], leaf: Any) -> NamedSharding:
        path = "/".join(str(key.key) for key in keys if isinstance(key, jax.tree_util.DictKey))
        front = ("experts",) if experts else ()
        axes = (*front, *_axes(path)) if path else front
        if len(axes) != leaf.ndim:
            axes = front
        return NamedSharding(
            mesh, partition_spec(mesh, axes + (None,) * (leaf.ndim - len(axes)), leaf.shape, rules)
        )

    return jax.tree_util.tree_map_with_path(of_leaf, tree)


def sharding_by_path(mesh: Mesh, rules: Rules = RULES) -> Callable[[str, Sequence[int]], NamedSharding]:
    """Returns a function from the path and shape of a base's parameter to its sharding, for readers."""
    return lambda path, shape: NamedSharding(mesh, partition_spec(mesh, _axes(path), shape, rules))


def batch_shardings(mesh: Mesh | AbstractMesh, batch: Any, *, rules: Rules = RULES) -> Any:
    """Returns a sharding for every array of a batch: rows are split over all axes but `tensor`."""

    def of_leaf(leaf: Any) -> NamedSharding:
        axes = ("batch", *(None,) * leaf.ndim)[: leaf.ndim]
        return NamedSharding(mesh, partition_spec(mesh, axes, leaf.shape, rules))

    return jax.tree.map(of_leaf, batch)


def mesh_of(tree: Any) -> Mesh | None:
    """Returns the mesh of several devices that parameters are mesh, or None."""
    leaf = jax.tree.leaves(tree)[0]
    if not isinstance(leaf, jax.Array) or not isinstance(leaf.sharding, NamedSharding):
        return None
    mesh = leaf.sharding.mesh
    return mesh if isinstance(mesh, Mesh) and mesh.size > 1 else None


def is_on_mesh(x: Array) -> bool:
    """Returns whether an array lies on more than one device, in a program too."""
    return any(size > 1 for size in _mesh_of(x).shape.values())


def count_row_shards(sizes: Mapping[str, int]) -> int:
    """Returns into how many parts a mesh of these sizes splits the rows of a batch."""
    return math.prod(sizes.get(axis, 1) for axis in RULES["batch"])


def lookup_embeddings(table: Float[Array, "V D"], tokens: Int[Array, "*places"]) -> Float[Array, "*places D"]:
    """Returns the embeddings of tokens, without gathering the table on a mesh.

    Every device looks up the rows of all its `fsdp` neighbours in its part of the width; then they exchange.
    """
    mesh, split = _mesh_of(table), RULES["embed"]
    rows = tuple(axis for axis in RULES["batch"] if axis not in split)
    found = jnp.take(table, _constrain(tokens, mesh, {0: rows}), axis=0)
    return _constrain(_constrain(found, mesh, {-1: split, 0: rows}), mesh, {-1: (), 0: RULES["batch"]})


def multiply(
    x: Float[Array, "*places I"], kernel: Float[Array, "I O"], name: str
) -> Float[Array, "*places O"]:
    """Multiplies by the kernel of that name in the type of x.

    On a mesh rows stay split, and a kernel that `fsdp` splits is gathered for this one product. The output
    layer is as large as many layers, so no device ever holds all of it. Its rows are gathered instead, and
    every device computes the logits of its part of the vocabulary.
    """
    mesh, wide = _mesh_of(kernel), KERNEL_AXES[name][1] == "vocab"
    tokens = _split_axes(mesh, kernel.shape, {1: RULES["vocab"] + RULES["embed"]})[1] if wide else ()
    rows = tuple(axis for axis in RULES["batch"] if axis not in tokens)
    if wide:
        kernel = _constrain(kernel, mesh, {1: tokens, 0: ()})
    x = _constrain(x, mesh, {0: rows})
    y = products.multiply(x, kernel)
    return _constrain(y, mesh, {-1: tokens, 0: rows}) if wide else y


def take_layer(stack: Array, layer: Any) -> Float[Array, "E *axes"]:
    """Takes one layer of stacked experts, [E, L, …]; on a mesh every device holds that whole layer."""
    return gather_whole(jax.lax.dynamic_index_in_dim(stack, layer, axis=1, keepdims=False))


def gather_whole(x: Array) -> Array:
    """Constrains an array to lie whole on every device of a part of the mesh."""
    return _constrain(x, _mesh_of(x), dict.fromkeys(range(x.ndim), ()))


def gather_by_segment(stack: Array, of: Int[Array, "B G"], *layer: Any) -> Float[Array, "B G *axes"]:
    """Gathers the parameters of every segment's expert from a stack [E, …], or one layer of [E, L, …].

    On a mesh every device holds that whole layer for a moment: within `shard_map_over_experts` XLA's
    partitioner would end the process over a gather from what `fsdp` and `tensor` split.
    """
    mesh = _mesh_of(stack)
    if any(size > 1 for size in mesh.shape.values()):
        stack, layer = stack[(slice(None), *layer)], ()
        stack = _constrain(stack, mesh, dict.fromkeys(range(1, stack.ndim), ()))
    return jnp.asarray(stack).at[(of, *layer)].get(mode="fill")  # an index too large gives NaN


def shard_map_over_experts(
    add: Callable[..., Any], params: Any, experts: int, *, frozen: Any = None
) -> Callable[..., Any]:
    """Returns the function `(params, frozen, rows, sums) -> sums` with every expert on its own devices.

    On a mesh with an `expert` axis each part runs the rows of its own experts, so that nothing is exchanged.

    Args:
        add: The function.
        params: The experts' parameters, which are on the mesh.
        experts: How many experts there are.
        frozen: How what is not trained lies, as the leaves of a tree; default: every part has all of it.
    """
    mesh = _mesh_of(jax.tree.leaves(params)[0])
    parts = mesh.shape.get("expert", 1)
    if parts == 1 or experts % parts:
        return add
    return jax.shard_map(
        add,
        mesh=mesh,
        in_specs=(BY_EXPERT, REPLICATED if frozen is None else frozen, BY_EXPERT, BY_EXPERT),
        out_specs=BY_EXPERT,
        axis_names={"expert"},
        check_vma=False,
    )


def experts_of_part(stack: Any) -> int:
    """Returns how many of stacked experts lie on each part of a mesh's expert axis."""
    parts, _ = _count_expert_shards(stack)
    return jax.tree.leaves(stack)[0].shape[0] // parts


def shard_map_by_axes(
    function: Callable[..., Any],
    arrays: Any,
    axes: Any,
    result_axes: Sequence[str | None],
    units: Mapping[str, int],
) -> Any:
    """Returns `function(arrays)`, on a mesh with each device at its own part: for what XLA cannot partition.

    Args:
        function: what every device runs.
        arrays: a tree of arrays, of which the first leaf is on the mesh.
        axes: a tree of that form, with the logical axes of each array in a tuple.
        result_axes: the logical axes of the only result.
        units: logical axis -> how many parts it may be cut into; one that the mesh does not divide is whole.
    """
    mesh = _mesh_of(jax.tree.leaves(arrays)[0])
    if not any(size > 1 for size in mesh.shape.values()):
        return function(arrays)
    free = _free_axes(mesh)
    split: dict[str | None, Any] = {None: None}
    for name, count in units.items():
        allowed = tuple(axis for axis in RULES[name] if axis in free)
        split[name] = _split_axes(mesh, [count], {0: allowed})[0]

    def spec(names: Sequence[str | None]) -> PartitionSpec:
        return PartitionSpec(*(split[name] for name in names))

    specs = jax.tree.map(spec, axes, is_leaf=lambda each: type(each) is tuple)
    run = jax.shard_map(
        function, mesh=mesh, in_specs=(specs,), out_specs=spec(result_axes), axis_names=free, check_vma=False
    )
    return run(arrays)


def put_expert(stack: Any, one: Any, place: Int[Array, ""]) -> Any:
    """Returns stacked trees, leaves [E, …], with a stack of one written at an index.

    On a mesh the device that has the index writes, and nothing is exchanged.
    """

    def put(whole: Array, new: Array, at: Array, inside: Array) -> Array:
        at = jnp.clip(at, 0, whole.shape[0] - 1)
        before = jax.lax.dynamic_slice_in_dim(whole, at, 1)
        return jax.lax.dynamic_update_slice_in_dim(whole, jnp.where(inside, new, before), at, 0)

    def own(stack: Any, one: Any, place: Array) -> Any:
        return jax.tree.map(
            lambda whole, new: put(whole, new, *_local_index(whole, place, parts)), stack, one
        )

    parts, mapped = _count_expert_shards(stack)
    if parts == 1:
        return own(stack, one, place)
    run = jax.shard_map(
        own,
        mesh=mapped,
        in_specs=(BY_EXPERT, REPLICATED, REPLICATED),
        out_specs=BY_EXPERT,
        axis_names={"expert"},
        check_vma=False,
    )
    return run(stack, one, place)


def take_expert(stack: Any, place: Int[Array, ""]) -> Any:
    """Returns the tree at an index of stacked trees, as a stack of one.

    On a mesh the device that has the index sends it to all, bit for bit.
    """

    def take(whole: Array, at: Array, inside: Array) -> Array:
        found = jax.lax.dynamic_slice_in_dim(whole, jnp.clip(at, 0, whole.shape[0] - 1), 1)
        if parts == 1:
            return found
        bits = jax.lax.bitcast_convert_type(found, f"uint{8 * found.dtype.itemsize}")
        bits = jax.lax.psum(jnp.where(inside, bits, 0), "expert")
        return jax.lax.bitcast_convert_type(bits, found.dtype)

    def own(stack: Any, place: Array) -> Any:
        return jax.tree.map(lambda whole: take(whole, *_local_index(whole, place, parts)), stack)

    parts, mapped = _count_expert_shards(stack)
    if parts == 1:
        return own(stack, place)
    run = jax.shard_map(
        own,
        mesh=mapped,
        in_specs=(BY_EXPERT, REPLICATED),
        out_specs=REPLICATED,
        axis_names={"expert"},
        check_vma=False,
    )
    return run(stack, place)


BY_EXPERT, REPLICATED = PartitionSpec("expert"), PartitionSpec()


def _count_expert_shards(stack: Any) -> tuple[int, AbstractMesh]:
    """Returns into how many parts a mesh splits the experts of a stack, and the mesh."""
    leaf = jax.tree.leaves(stack)[0]
    mesh = _mesh_of(leaf)
    parts = mesh.shape.get("expert", 1)
    return (1 if leaf.shape[0] % parts else parts), mesh


def _local_index(whole: Array, place: Array, parts: int) -> tuple[Array, Array]:
    """Returns an index among the experts of a device, and whether it is one of them."""
    if parts == 1:
        return place, jnp.array(True)
    at = place - jax.lax.axis_index("expert") * whole.shape[0]
    return at, (at >= 0) & (at < whole.shape[0])


def constrain_sharding_like(tree: Any, like: Array) -> Any:
    """Constrains values of stacked experts to be split as experts are, on the mesh of `like`."""
    mesh = _mesh_of(like)
    if not any(size > 1 for size in mesh.shape.values()):
        return tree
    return jax.lax.with_sharding_constraint(tree, param_shardings(mesh, tree, experts=True))


def _axes(path: str) -> tuple[str | None, ...]:
    """Returns the logical axes of a leaf; a vector of the width has none, since gathering it costs more."""
    axes = logical_axes(path)
    return tuple(None for _ in axes) if set(axes) <= {"layers", "embed", "prompt"} else axes


def _mesh_of(parameter: Array) -> AbstractMesh:
    """Returns the mesh that a parameter is on, an empty one if it is on one device."""
    return jax.typeof(parameter).sharding.mesh


def _split_axes(
    mesh: Mesh | AbstractMesh, shape: Sequence[int], allowed: Mapping[int, tuple[str, ...]]
) -> list[tuple[str, ...]]:
    """Returns the axes of the mesh that split each axis of an array, the first of `allowed` if it can."""
    parts: list[tuple[str, ...]] = [()] * len(shape)
    taken: set[str] = set()
    for place, axes in allowed.items():
        for axis in axes:
            size = mesh.shape.get(axis, 1)
            if (
                axis not in taken
                and size > 1
                and not shape[place] % (_count_shards(mesh, parts[place]) * size)
            ):
                parts[place] += (axis,)
                taken.add(axis)
    return parts


def _count_shards(mesh: Mesh | AbstractMesh, axes: Sequence[str]) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)


def _free_axes(mesh: AbstractMesh) -> set[str]:
    """Returns the axes of a mesh by which arrays may be split here: within a shard_map not by its own."""
    return {
        axis for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto
    }


def _constrain(x: Array, mesh: AbstractMesh, allowed: Mapping[int, tuple[str, ...]]) -> Array:
    """Constrains axes of x, by their numbers, to axes of the mesh, and leaves the others to the compiler."""
    free = _free_axes(mesh)  # outside of a program nothing is constrained
    if not isinstance(x, Tracer) or not any(mesh.shape[axis] > 1 for axis in free):
        return x
    allowed = {place % x.ndim: tuple(a for a in axes if a in free) for place, axes in allowed.items()}
    parts: list[Any] = [PartitionSpec.UNCONSTRAINED] * x.ndim
    for place, part in enumerate(_split_axes(mesh, x.shape, allowed)):
        if place in allowed:
            parts[place] = part
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*parts)))
