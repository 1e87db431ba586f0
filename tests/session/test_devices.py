"""The memory of a device, and a base's parameters placed on this process's devices."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from elm_jax.models import sharding
from elm_jax.session import devices


def test_the_devices_of_a_machine_share_half_of_its_memory():
    assert devices.device_memory() == devices.host_memory() // 2 // 8


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/\n", {"memory.max": "900000000"}, 900_000_000),
        ("0::/a/b\n", {"a/memory.max": "700000000", "a/b/memory.max": "max"}, 700_000_000),
        ("0::/outside\n", {"memory.max": "600000000"}, 600_000_000),  # the group is the container's root
        ("4:memory:/job\n0::/\n", {"memory/job/memory.limit_in_bytes": "500000000"}, 500_000_000),
        ("0::/\n", {"memory.max": "max"}, None),
        ("0::/\n", {}, None),
    ],
)
def test_the_limits_of_a_container_are_obeyed(tmp_path, groups, limits, expected):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in limits.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert devices.host_memory(tmp_path) == (expected or whole)


def test_the_limit_of_the_shell_is_obeyed():
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (10**10, 10**10))\n"
        "from elm_jax.session import devices; print(devices.host_memory())"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout == f"{10**10}\n"


def test_several_cpu_devices_are_used_only_if_axis_sizes_are_given(base):
    host = jax.tree.map(np.asarray, base)
    placed = devices.place_on_devices(host)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(placed))
    assert sharding.mesh_of(placed) is None


def test_devices_beyond_the_given_axes_score_rows_of_their_own(base):
    for axis_sizes, whole in (({"fsdp": 2}, {"data": 4, "fsdp": 2}), ({"fsdp": -1}, {"data": 1, "fsdp": 8})):
        on = sharding.mesh_of(devices.place_on_devices(base, axis_sizes))
        assert dict(on.shape) == {"expert": 1, "tensor": 1, **whole}
