"""Slices by name, and the devices that the compilers make of them."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from elm_jax.aot import memory, slices
from elm_jax.aot.devices import DEVICE_KINDS, GIB, kind_of, peak_flops
from elm_jax.errors import UserError

TPUS = [name for name in slices.slice_names() if name.startswith("v")]
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
    found = slices.slice_of(name)
    assert (found.name, found.devices, found.hosts) == (name, devices, hosts)
    assert (found.shape, found.slices) == (shape, number)


@pytest.mark.parametrize(
    ("written", "name"),
    [("v5litepod-16", "v5e-16"), (" V4-8 ", "v4-8"), ("1xv5e-4", "v5e-4"), ("1xh200", "h200")],
)
def test_other_spellings_are_the_same_slice(written, name):
    assert slices.slice_of(written) == slices.slice_of(name)


@pytest.mark.parametrize("name", ["v4-9", "v4-4", "v5e-3", "v7-8", "tpu", "", "0xh100", "2x", "v5e"])
def test_an_unknown_name_ends_in_one_sentence_with_the_valid_ones(name):
    with pytest.raises(UserError) as error:
        slices.slice_of(name)
    assert repr(name) in str(error.value)
    assert "v4-8/16/32" in str(error.value)
    assert "8xh100" in str(error.value)
    assert "\n" not in str(error.value)


def test_gpus_beyond_one_host_fill_whole_hosts():
    with pytest.raises(UserError, match="8xh100 or 16xh100"):
        slices.slice_of("9xh100")


@pytest.mark.aot
@pytest.mark.parametrize("name", [*TPUS, "2xv5e-256", "2xv4-8", "4xv6e-1"])
def test_every_tpu_slice_makes_its_devices(name):
    found = slices.slice_of(name)
    made = slices.devices(found)
    assert len(made) == found.devices
    assert len({device.process_index for device in made}) == found.hosts
    assert {device.platform for device in made} == {"tpu"}
    assert kind_of(made[0].device_kind) == found.kind


@cuda
@pytest.mark.aot
@pytest.mark.parametrize("name", ["h200", "h100", "a100", "a100-40", "8xh200", "16xh100"])
def test_every_gpu_makes_its_devices(name):
    found = slices.slice_of(name)
    made = slices.devices(found)
    assert len(made) == found.devices
    assert {device.platform for device in made} == {"gpu"}
    assert kind_of(made[0].device_kind) == found.kind


@pytest.mark.aot
@pytest.mark.parametrize("name", ["v4-8", "v5e-4", "v5p-8", "v6e-4"])
def test_the_table_has_the_memory_that_the_compiler_allows(name):
    found = slices.slice_of(name)
    to = SingleDeviceSharding(slices.devices(found)[0])
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
