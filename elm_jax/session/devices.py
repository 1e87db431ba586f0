"""Devices: how much memory a device of this process has, and a base's parameters placed on the devices."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import jax

from elm_jax.models import meshes, sharding
from elm_jax.records import Params


def device_memory() -> int:
    """Returns the bytes that one device of this process may use.

    For an accelerator, this is what JAX may allocate. CPU devices share half of the machine's memory, or of
    what a container or the shell lets this process have.
    """
    devices = jax.local_devices()
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    if limit:
        return int(limit)
    return host_memory() // 2 // len(devices)


def host_memory(root: Path = Path("/")) -> int:
    """Returns the bytes that this process may use: the machine's, or the least that it is limited to.

    Args:
        root: Where the system's files are, of control groups among them.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_cgroup_memory_limits(root)]
    with contextlib.suppress(ImportError):  # absent where the system is not POSIX
        import resource

        limits += [
            limit
            for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)
            if (limit := resource.getrlimit(kind)[0]) != resource.RLIM_INFINITY
        ]
    return min(limits)


def _cgroup_memory_limits(root: Path) -> Iterator[int]:
    """Yields the memory that the control groups of this process, and those above, have; of both versions."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        home = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        inside = PurePosixPath(group.lstrip("/"))
        # In a container the group may be mounted as the root, whatever its name is outside.
        for place in dict.fromkeys([inside, *inside.parents, PurePosixPath(".")]):
            with contextlib.suppress(OSError, ValueError):  # absent, or "max"
                yield int((home / place / name).read_text())


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
