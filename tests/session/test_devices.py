"""Room: the memory of a device, and how a base lies on this process's devices."""

import os

import jax
import numpy as np

from elm_jax.models import sharding
from elm_jax.session import devices


def test_the_devices_of_a_machine_share_half_of_its_memory():
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert devices.memory() == whole // 2 // 8


def test_what_a_cpu_is_divided_into_is_used_on_request_alone(base):
    host = jax.tree.map(np.asarray, base)
    placed = devices.spread(host)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(placed))
    assert sharding.mesh_of(placed) is None


def test_what_is_left_of_the_devices_scores_rows_of_its_own(base):
    for asked, whole in (({"fsdp": 2}, {"data": 4, "fsdp": 2}), ({"fsdp": -1}, {"data": 1, "fsdp": 8})):
        on = sharding.mesh_of(devices.spread(base, asked))
        assert dict(on.shape) == {"expert": 1, "tensor": 1, **whole}
