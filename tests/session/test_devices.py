"""The memory of a device, and a base's parameters placed on this process's devices."""

import os

import jax
import numpy as np

from elm_jax.models import sharding
from elm_jax.session import devices


def test_the_devices_of_a_machine_share_half_of_its_memory():
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert devices.device_memory() == whole // 2 // 8


def test_several_cpu_devices_are_used_only_if_axis_sizes_are_given(base):
    host = jax.tree.map(np.asarray, base)
    placed = devices.place_on_devices(host)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(placed))
    assert sharding.mesh_of(placed) is None


def test_devices_beyond_the_given_axes_score_rows_of_their_own(base):
    for axis_sizes, whole in (({"fsdp": 2}, {"data": 4, "fsdp": 2}), ({"fsdp": -1}, {"data": 1, "fsdp": 8})):
        on = sharding.mesh_of(devices.place_on_devices(base, axis_sizes))
        assert dict(on.shape) == {"expert": 1, "tensor": 1, **whole}
