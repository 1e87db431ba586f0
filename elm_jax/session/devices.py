"""Room: the memory that a device of this process has, and how a base lies on these devices."""

import os
from collections.abc import Mapping

import jax

from elm_jax.models import meshes, sharding
from elm_jax.records import Params


def memory() -> int:
    """Returns the bytes that one device of this process has.

    Of an accelerator those that JAX may take of it; of a machine's own memory half, shared by its devices.
    """
    devices = jax.local_devices()
    told = (devices[0].memory_stats() or {}).get("bytes_limit")
    if told:
        return int(told)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 // len(devices)


def spread(params: Params, sizes: Mapping[str, int] | None = None) -> Params:
    """Returns a base's parameters as they lie on this process's devices, to score with; `sizes` are by axis.

    Without them they are whole on every accelerator, and each scores rows of its own; split where they would
    take more than half of its memory. What a CPU is divided into is used on request alone.
    """
    devices = jax.local_devices()
    if sizes is None:
        if len(devices) == 1 or jax.default_backend() == "cpu":
            return jax.device_put(params)
        whole = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        sizes = {"data" if 2 * whole <= memory() else "fsdp": len(devices)}
    on = meshes.make_mesh(devices, **{"data": 1 if -1 in sizes.values() else -1, **sizes})
    return jax.device_put(params, sharding.param_shardings(on, params))
