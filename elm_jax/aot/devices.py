"""Device kinds: what one TPU chip or GPU has in memory, arithmetic, bandwidth and links.

The memory of each TPU was read from its compiler (libtpu 0.0.42.1), which refuses a program that is too large
with the number of GiB that are available. The other figures are the vendors', and none of them was measured:
for TPUs the page of each version in Google Cloud's documentation, for the links of v4 Jouppi et al. 2023
(arXiv 2304.01433), for GPUs NVIDIA's data sheets of the SXM form. A TPU's clock is the one at which its
multipliers (v4 and v5p 8 of 128 x 128, v5e 4, v6e 4 of 256 x 256) reach its peak. JAX takes three quarters of
a GPU's memory.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

GIB = 2**30
GPU_FRACTION = 0.75
"""The share of a GPU's memory that JAX allocates (XLA_PYTHON_CLIENT_MEM_FRACTION)."""


@dataclass(frozen=True)
class DeviceKind:
    """What one device has.

    Attributes:
        name: the name in a slice's name, such as "v5e" or "h100".
        platform: JAX's platform, "tpu" or "gpu".
        peak_flops: FLOP/s of dense bfloat16 products.
        memory_limit: bytes that a program may take.
        memory_bandwidth: bytes per second between the device and its memory.
        clock: cycles per second of a TPU's compiler estimates; 0.0 for a GPU, whose compiler makes none.
        link_bandwidth: bytes per second and direction to one neighbour (TPU) or to all others (GPU). Used for
            collectives that block, and for nothing else.
        device_kind: a regular expression for JAX's `device_kind`.
        cores: of a TPU chip, which share the parallel dimensions of a kernel's grid (Pallas's megacore).
    """

    name: str
    platform: str
    peak_flops: float
    memory_limit: int
    memory_bandwidth: float
    clock: float
    link_bandwidth: float
    device_kind: str
    cores: int = 1


@dataclass(frozen=True)
class GpuModel:
    """What XLA's compiler asks about a GPU when none is present.

    Attributes:
        description: JAX's `device_kind`.
        memory: bytes of device memory.
        compute_capability: major and minor version.
        cores: streaming multiprocessors.
        fpus_per_core: float32 units of one of them.
        clock_ghz: the highest clock.
        l2_cache: bytes.
        shared_memory_per_core: bytes.
        shared_memory_per_block: bytes that one block may ask for.
    """

    description: str
    memory: int
    compute_capability: tuple[int, int]
    cores: int
    fpus_per_core: int
    clock_ghz: float
    l2_cache: int
    shared_memory_per_core: int
    shared_memory_per_block: int


def _hopper(description: str, memory: int) -> GpuModel:
    return GpuModel(description, memory, (9, 0), 132, 128, 1.98, 50 * 2**20, 228 * 2**10, 227 * 2**10)


def _ampere(description: str, memory: int) -> GpuModel:
    return GpuModel(description, memory, (8, 0), 108, 64, 1.41, 40 * 2**20, 164 * 2**10, 163 * 2**10)


GPU_MODELS = {
    "h200": _hopper("NVIDIA H200", 141 * 10**9),
    "h100": _hopper("NVIDIA H100 80GB HBM3", 80 * 10**9),
    "a100": _ampere("NVIDIA A100-SXM4-80GB", 80 * 10**9),
    "a100-40": _ampere("NVIDIA A100-SXM4-40GB", 40 * 10**9),
}


def _tpu(
    name: str,
    peak: float,
    limit: float,
    bandwidth: float,
    clock: float,
    link: float,
    kind: str,
    cores: int = 1,
) -> DeviceKind:
    return DeviceKind(
        name, "tpu", peak * 1e12, int(limit * GIB), bandwidth * 1e9, clock * 1e9, link * 1e9, kind, cores
    )


def _gpu(name: str, peak: float, bandwidth: float, link: float, kind: str) -> DeviceKind:
    limit = int(GPU_FRACTION * GPU_MODELS[name].memory)
    return DeviceKind(name, "gpu", peak * 1e12, limit, bandwidth * 1e9, 0.0, link * 1e9, kind)


DEVICE_KINDS: dict[str, DeviceKind] = {
    kind.name: kind
    for kind in (
        #     TFLOP/s, GiB, GB/s, GHz, GB/s a link
        _tpu("v4", 275.0, 30.75, 1200.0, 1.05, 50.0, "TPU v4", cores=2),
        _tpu("v5e", 197.0, 15.75, 819.0, 1.503, 50.0, "TPU v5 lite|TPU v5e"),
        _tpu("v5p", 459.0, 95.74, 2765.0, 1.75, 100.0, "TPU v5|TPU v5p", cores=2),
        _tpu("v6e", 918.0, 31.25, 1638.0, 1.75, 100.0, "TPU v6 lite|TPU v6e"),
        #     TFLOP/s, GB/s, GB/s of NVLink
        _gpu("h200", 989.0, 4800.0, 450.0, "NVIDIA H200"),
        _gpu("h100", 989.0, 3350.0, 450.0, "NVIDIA H100 80GB HBM3"),
        _gpu("a100", 312.0, 2039.0, 300.0, "NVIDIA A100-SXM4-80GB|NVIDIA A100 80GB PCIe"),
        _gpu("a100-40", 312.0, 1555.0, 300.0, "NVIDIA A100-(SXM4|PCIE)-40GB"),
    )
}


def find_device_kind(device_kind: str) -> DeviceKind | None:
    """Returns the device kind for JAX's `device_kind`, or None where the table has none.

    Slower forms of a GPU (H100 PCIe, H200 NVL, a part of a GPU) are not in the table.

    >>> find_device_kind("TPU v5 lite").name, find_device_kind("NVIDIA H100 PCIe")
    ('v5e', None)
    """
    return next((kind for kind in DEVICE_KINDS.values() if re.fullmatch(kind.device_kind, device_kind)), None)


def peak_flops(devices: Iterable[Any], dtype: str) -> float | None:
    """Returns the FLOP/s that JAX's devices reach together at most.

    Args:
        devices: JAX devices.
        dtype: the type of the products' operands.

    Returns:
        The sum of the devices' peaks; None for another type than bfloat16, or where a device is unknown.
    """
    kinds = [find_device_kind(device.device_kind) for device in devices]
    known = [kind.peak_flops for kind in kinds if kind is not None]
    return sum(known) if dtype == "bfloat16" and known and len(known) == len(kinds) else None
