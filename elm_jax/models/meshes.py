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
