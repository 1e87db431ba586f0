"""Memory of compiled programs, on devices that are here; and what a refusal says."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from elm_jax.aot import memory
from elm_jax.aot.program import Program


def test_memory_is_read_on_the_devices_that_are_here():
    x = jax.ShapeDtypeStruct((256, 1024), jnp.float32)
    kept = memory.count_program_bytes(jax.jit(lambda x: x + 1).lower(x).compile())
    donated = memory.count_program_bytes(jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile())
    assert kept - donated == x.size * 4
    assert donated >= x.size * 4


def test_resident_trees_count_as_they_are_split():
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

    def shape(dtype, *split):
        return jax.ShapeDtypeStruct((8, 6), dtype, sharding=NamedSharding(mesh, PartitionSpec(*split)))

    resident = {"split": shape(jnp.float32, "data", "fsdp"), "whole": shape(jnp.bfloat16)}
    program = Program("nothing", None, (), (resident,))
    assert memory.resident_bytes(program) == 2 * 3 * 4 + 8 * 6 * 2


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        (
            "the total memory required for HLO temporaries (300.00G) exceeds available HBM (30.75G).",
            300 * 2**30,
        ),
        ("Ran out of memory in memory space hbm. Used 22.50G of 15.75G hbm. Exceeds by 6.75G.", 45 * 2**29),
        ("22.63G exceeds available HBM (15.75G)", int(22.63 * 2**30)),
        ("Ran out of memory in memory space vmem. Used 17.00M of 16.00M vmem.", None),
    ],
)
def test_a_refusal_tells_the_bytes_that_are_needed(message, needed):
    assert memory.required_bytes(f"RESOURCE_EXHAUSTED: {message}") == needed
