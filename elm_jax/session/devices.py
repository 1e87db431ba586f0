"""Devices: how much memory a device of this process has, and a base's parameters placed on the devices."""

import os
from collections.abc import Mapping

import jax

from elm_jax.models import meshes, sharding
from elm_jax.records import Params


def device_memory() -> int:
    """Returns the bytes that one device of this process may use.

    For an accelerator, this is what JAX may allocate. CPU devices share half of the machine's memory.
    """
    devices = jax.local_devices()
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    if limit:
        return int(limit)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 // len(devices)


def place_on_devices(params: Params, axis_sizes: Mapping[str, int] | None = None) -> Params:
    """Returns a base's parameters placed on this process's devices for scoring.

    Args:
        params: The base's parameters.
        axis_sizes: Sizes of the mesh's axes. By default every accelerator has a whole copy and scores rows of
            its own; if a copy would take more than half of its memory, the parameters are split. Several CPU
            devices are used only if sizes are given.
    """
    devices = jax.local_devices()
    if axis_sizes is None:
        if len(devices) == 1 or jax.default_backend() == "cpu":
            return jax.device_put(params)
        num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        axis_sizes = {"data" if 2 * num_bytes <= device_memory() else "fsdp": len(devices)}
    mesh = meshes.make_mesh(devices, **{"data": 1 if -1 in axis_sizes.values() else -1, **axis_sizes})
    return jax.device_put(params, sharding.param_shardings(mesh, params))
