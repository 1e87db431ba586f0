"""Sharding: how parameters, experts and rows lie on a mesh of devices, told by the names of their axes.

A mesh has four axes. `expert` keeps whole experts apart, which need nothing of one another. `data` splits
rows, and every device has all of the base. `fsdp` splits rows too and the base with them: a layer's kernels
are gathered when that layer runs. `tensor` splits the inside of layers: heads, feed-forward, vocabulary.

The network pins its activations to the mesh that its parameters lie on, which JAX tells in their types; where
they lie on one device, nothing is pinned. Left to itself XLA splits the width of activations as `fsdp` splits
the kernels, so that every device has all rows and adds them up over the mesh after every product.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from elm_jax.axes import Array
from elm_jax.errors import UserError
from elm_jax.models import products
from elm_jax.models.kinds import KERNELS, axes_of

AXES = ("expert", "data", "fsdp", "tensor")
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


def mesh(
    devices: Sequence[Any] | None = None,
    *,
    expert: int = 1,
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
) -> Mesh:
    """Returns a mesh of all devices, or of those given; one of the sizes may be -1, which is what is left.

    Raises a UserError where the sizes do not multiply to the number of devices.

    >>> dict(mesh(jax.devices()[:1]).shape)
    {'expert': 1, 'data': 1, 'fsdp': 1, 'tensor': 1}
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = fitted(len(devices), expert=expert, data=data, fsdp=fsdp, tensor=tensor)
    # Axes of type Auto: how what lies between is split, the compiler finds.
    types = (AxisType.Auto,) * len(AXES)
    return Mesh(_laid_out(devices, sizes), AXES, axis_types=types)


def _laid_out(devices: Sequence[Any], sizes: Mapping[str, int]) -> np.ndarray:
    """Returns devices in an array of a mesh's sizes, neighbours on its axes near one another."""
    shape = tuple(sizes[axis] for axis in AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        try:
            # A torus whose dimensions do not multiply to the sizes is cut through.
            return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        except NotImplementedError:
            return np.array(devices, object).reshape(shape)
    between = between_slices(sizes, slices)
    within = tuple(size // part for size, part in zip(shape, between, strict=True))
    parts = [
        _laid_out(own, dict(zip(AXES, within, strict=True)))
        for _, own in itertools.groupby(
            sorted(devices, key=lambda device: device.slice_index), lambda device: device.slice_index
        )
        for own in [list(own)]
    ]
    # [slices of experts, slices of data, 1, 1, expert, data, fsdp, tensor], each axis beside its own.
    whole = np.array(parts, object).reshape(*between, *within)
    return whole.transpose(0, 4, 1, 5, 2, 6, 3, 7).reshape(shape)


def fitted(devices: int, **sizes: int) -> dict[str, int]:
    """Returns the sizes of a mesh of so many devices, the one that is -1 worked out.

    >>> fitted(8, data=-1, fsdp=4)
    {'data': 2, 'fsdp': 4}
    """
    told = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    left = [axis for axis, size in sizes.items() if size == -1]
    if len(left) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f"Sizes of at least 1 are wanted for a mesh, one of them -1 at most; {told} came.")
    known = math.prod(size for size in sizes.values() if size != -1)
    if devices % known or (not left and known != devices):
        raise UserError(
            f"A mesh of {devices} device{'s' * (devices != 1)} is wanted, but {told} takes "
            f"{'a multiple of ' * bool(left)}{known}. Change a size, or give as many devices."
        )
    return sizes | dict.fromkeys(left, devices // known)


def between_slices(sizes: Mapping[str, int], slices: int) -> tuple[int, ...]:
    """Returns how many slices each axis of a mesh reaches over.

    Between slices, which a slow network joins, only `expert` and `data` may reach: experts send one another
    nothing, and data its gradients alone.

    Raises:
        UserError: these two do not divide into so many slices.

    >>> between_slices({"expert": 2, "data": 8, "fsdp": 4, "tensor": 1}, 4)
    (2, 2, 1, 1)
    """
    expert = math.gcd(sizes["expert"], slices)
    data = math.gcd(sizes["data"], slices // expert)
    if expert * data != slices:
        told = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
        raise UserError(
            f"Expected a mesh whose expert and data axes divide into {slices} slices, got {told}. Fix: give "
            f"them a common multiple of {slices}, as data={slices}."
        )
    return expert, data, 1, 1


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
    mapped, same = PartitionSpec("expert"), PartitionSpec()
    return jax.shard_map(
        add,
        mesh=on,
        in_specs=(mapped, same, mapped, mapped),
        out_specs=mapped,
        axis_names={"expert"},
        check_vma=False,
    )


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
