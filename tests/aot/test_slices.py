"""Slices by name, and the devices that the compilers make of them."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

import elm_jax
from elm_jax.aot import memory, slices
from elm_jax.aot.devices import DEVICE_KINDS, GIB, find_device_kind, peak_flops
from elm_jax.errors import UserError
from elm_jax.extras import install_command

TPUS = [name for name in slices.list_slice_names() if name.startswith("v")]
cuda = pytest.mark.skipif(
    not importlib.util.find_spec("jax_cuda13_plugin"), reason="CUDA's compiler, of the extra plan, is absent"
)


@pytest.mark.parametrize(
    ("name", "devices", "hosts", "shape", "number"),
    [
        ("v4-8", 4, 1, (2, 2, 1), 1),
        ("v4-512", 256, 64, (4, 8, 8), 1),
        ("v5p-128", 64, 16, (4, 4, 4), 1),
        ("v5e-1", 1, 1, (1, 1), 1),
        ("v5e-8", 8, 1, (2, 4), 1),
        ("v6e-256", 256, 64, (16, 16), 1),
        ("2xv5e-256", 512, 128, (16, 16), 2),
        ("h200", 1, 1, (1, 1), 1),
        ("8xh100", 8, 1, (1, 8), 1),
        ("32xh100", 32, 4, (4, 8), 1),
    ],
)
def test_a_name_tells_devices_hosts_and_shape(name, devices, hosts, shape, number):
    found = slices.parse_slice(name)
    assert (found.name, found.devices, found.hosts) == (name, devices, hosts)
    assert (found.shape, found.slices) == (shape, number)


@pytest.mark.parametrize(
    ("written", "name"),
    [("v5litepod-16", "v5e-16"), (" V4-8 ", "v4-8"), ("1xv5e-4", "v5e-4"), ("1xh200", "h200")],
)
def test_other_spellings_are_the_same_slice(written, name):
    assert slices.parse_slice(written) == slices.parse_slice(name)


@pytest.mark.parametrize("name", ["v4-9", "v4-4", "v5e-3", "v7-8", "tpu", "", "0xh100", "2x", "v5e"])
def test_an_unknown_name_ends_in_one_sentence_with_the_valid_ones(name):
    with pytest.raises(UserError) as error:
        slices.parse_slice(name)
    assert repr(name) in str(error.value)
    assert "v4-8/16/32" in str(error.value)
    assert "8xh100" in str(error.value)
    assert "\n" not in str(error.value)


def test_gpus_beyond_one_host_fill_whole_hosts():
    with pytest.raises(UserError, match="8xh100 or 16xh100"):
        slices.parse_slice("9xh100")


@pytest.mark.aot
@pytest.mark.parametrize("name", [*TPUS, "2xv5e-256", "2xv4-8", "4xv6e-1"])
def test_every_tpu_slice_makes_its_devices(name):
    found = slices.parse_slice(name)
    made = slices.topology_devices(found)
    assert len(made) == found.devices
    assert len({device.process_index for device in made}) == found.hosts
    assert {device.platform for device in made} == {"tpu"}
    assert find_device_kind(made[0].device_kind) == found.kind


@cuda
@pytest.mark.aot
@pytest.mark.parametrize("name", ["h200", "h100", "a100", "a100-40", "8xh200", "16xh100"])
def test_every_gpu_makes_its_devices(name):
    found = slices.parse_slice(name)
    made = slices.topology_devices(found)
    assert len(made) == found.devices
    assert {device.platform for device in made} == {"gpu"}
    assert find_device_kind(made[0].device_kind) == found.kind


@pytest.mark.aot
@pytest.mark.parametrize("name", ["v4-8", "v5e-4", "v5p-8", "v6e-4"])
def test_the_table_has_the_memory_that_the_compiler_allows(name):
    found = slices.parse_slice(name)
    to = SingleDeviceSharding(slices.topology_devices(found)[0])
    x = jax.ShapeDtypeStruct((150 * 2**10, 2**10, 256), jnp.float32, sharding=to)  # 150 GiB
    with pytest.raises(jax.errors.JaxRuntimeError) as error:
        jax.jit(lambda x: x + 1).lower(x).compile()
    assert f"exceeds available HBM ({found.kind.memory_limit / GIB:.2f}G)" in str(error.value)
    assert memory.required_bytes(str(error.value)) == 300 * GIB  # with the result


@pytest.mark.parametrize("kind", DEVICE_KINDS.values(), ids=DEVICE_KINDS)
def test_figures_are_of_one_scale(kind):
    assert 1e14 < kind.peak_flops < 1e15
    assert 5e11 < kind.memory_bandwidth < 5e12
    assert 15 * GIB < kind.memory_limit < 140 * GIB


def test_peaks_add_up_and_are_none_where_one_is_unknown():
    class Device:
        def __init__(self, device_kind):
            self.device_kind = device_kind

    assert peak_flops([Device("TPU v4"), Device("TPU v5 lite")], "bfloat16") == 472e12
    assert peak_flops([Device("TPU v4"), Device("cpu")], "bfloat16") is None
    assert peak_flops([Device("TPU v4")], "float32") is None
    assert peak_flops([], "bfloat16") is None


BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("libtpu", "jax_plugins"):
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Blocker())
from elm_jax.aot import compiler, slices
from elm_jax.errors import UserError
for name in ("v5e-1", "h200"):
    try:
        compiler.compile_programs(slices.parse_slice(name), {"fsdp": 1}, "small_programs.build", {})
    except UserError as error:
        print(error)
"""


def test_without_the_compilers_one_sentence_says_how_to_get_them():
    environment = {**os.environ, "PYTHONPATH": str(Path(elm_jax.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        f"Expected the TPU compiler (libtpu) to be installed, got none. Fix: {install_command('plan')}",
        "Expected the GPU compiler (jax-cuda13-plugin) to be installed, got none. "
        f"Fix: {install_command('plan')}",
    ]
