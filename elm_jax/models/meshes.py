"""Meshes: devices in an array whose axes split experts, rows and kernels.

`sharding` says what each of the axes splits.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from elm_jax.errors import UserError

AXES = ("expert", "data", "fsdp", "tensor")


def make_mesh(
    devices: Sequence[Any] | None = None,
    *,
    expert: int = 1,
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
) -> Mesh:
    """Makes a mesh of devices.

    Args:
        devices: The devices; default: all.
        expert: The size of this axis; one of the four sizes may be -1, which takes the remaining devices.
        data: The size of this axis.
        fsdp: The size of this axis.
        tensor: The size of this axis.

    Raises:
        UserError: If the product of the sizes is not the number of devices.

    >>> dict(make_mesh(jax.devices()[:1]).shape)
    {'expert': 1, 'data': 1, 'fsdp': 1, 'tensor': 1}
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = resolve_sizes(len(devices), expert=expert, data=data, fsdp=fsdp, tensor=tensor)
    # Axes of type Auto: the compiler decides how activations are split.
    types = (AxisType.Auto,) * len(AXES)
    return Mesh(_arrange(devices, sizes), AXES, axis_types=types)


def _arrange(devices: Sequence[Any], sizes: Mapping[str, int]) -> np.ndarray:
    """Returns devices in an array of a mesh's sizes, so that neighbours on an axis are close together."""
    shape = tuple(sizes[axis] for axis in AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        try:
            # If the dimensions of the torus do not match the sizes, they are split.
            return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        except NotImplementedError:
            return np.array(devices, object).reshape(shape)
    between = slices_per_axis(sizes, slices)
    within = tuple(size // part for size, part in zip(shape, between, strict=True))
    parts = [
        _arrange(own, dict(zip(AXES, within, strict=True)))
        for _, own in itertools.groupby(
            sorted(devices, key=lambda device: device.slice_index), lambda device: device.slice_index
        )
        for own in [list(own)]
    ]
    # [slices of experts, slices of data, 1, 1, expert, data, fsdp, tensor], each axis beside its own.
    whole = np.array(parts, object).reshape(*between, *within)
    return whole.transpose(0, 4, 1, 5, 2, 6, 3, 7).reshape(shape)


def resolve_sizes(devices: int, **sizes: int) -> dict[str, int]:
    """Returns the sizes of a mesh of that many devices, with the size that is -1 computed.

    Raises:
        UserError: If the sizes do not match the devices.

    >>> resolve_sizes(8, data=-1, fsdp=4)
    {'data': 2, 'fsdp': 4}
    """
    given = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    left = [axis for axis, size in sizes.items() if size == -1]
    if len(left) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(
            f"Expected sizes of a mesh of at least 1, and at most one of -1, got {given}. Fix: correct them."
        )
    known = math.prod(size for size in sizes.values() if size != -1)
    if devices % known or (not left and known != devices):
        raise UserError(
            f"Expected the sizes of a mesh of {devices} device{'s' * (devices != 1)}, got {given}, which "
            f"takes {'a multiple of ' * bool(left)}{known}. Fix: change a size, or use as many devices."
        )
    return sizes | dict.fromkeys(left, devices // known)


def slices_per_axis(sizes: Mapping[str, int], slices: int) -> tuple[int, ...]:
    """Returns over how many slices each axis of a mesh is spread.

    The network between slices is slow, so only `expert` and `data` may be spread: experts exchange nothing,
    and data only gradients.

    Raises:
        UserError: If these two do not divide into that many slices.

    >>> slices_per_axis({"expert": 2, "data": 8, "fsdp": 4, "tensor": 1}, 4)
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
