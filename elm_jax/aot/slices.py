"""Slices: devices that are used together, as their names tell them, and the compiler's view of them.

A slice's name is a TPU's with the number in Google's own name (`v4-8`, `v5e-256`), several such slices joined
by the data-centre network (`2xv5e-256`), or GPUs (`h200`, `8xh100`). The numbers of v4 and v5p count cores,
two of which make one device. No device has to be present: the compiler of each platform describes it.
"""

import importlib.util
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from elm_jax import names
from elm_jax.aot.devices import DEVICE_KINDS, GPU_MODELS, DeviceKind
from elm_jax.errors import UserError
from elm_jax.extras import install_command

ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # what is compiled for an absent device cannot be loaded
        "TPU_SKIP_MDS_QUERY": "1",  # do not ask Google Cloud's metadata server about this machine
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # otherwise a second process aborts on libtpu's lock file
        "TPU_LOG_DIR": "disabled",  # libtpu otherwise leaves a file for every process
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
)
"""The environment in which `devices` works; it must be set before JAX is imported."""

# Chips of a slice to its shape, as Google Cloud names it.
_CUBES = {
    4: (2, 2, 1),
    8: (2, 2, 2),
    16: (2, 2, 4),
    32: (2, 4, 4),
    64: (4, 4, 4),
    128: (4, 4, 8),
    256: (4, 8, 8),
}
_SQUARES = {
    1: (1, 1),
    4: (2, 2),
    8: (2, 4),
    16: (4, 4),
    32: (4, 8),
    64: (8, 8),
    128: (8, 16),
    256: (16, 16),
}
_CORES = {"v4": 2, "v5p": 2, "v5e": 1, "v6e": 1}  # that a slice's number counts per chip
_SHAPES = {
    "v4": _CUBES,
    "v5p": {chips: shape for chips, shape in _CUBES.items() if chips <= 64},
    "v5e": _SQUARES,
    "v6e": _SQUARES,
}
_ALIASES = {"v5litepod": "v5e"}
_COMPILERS = {"tpu": ("libtpu", "libtpu"), "gpu": ("jax-cuda13-plugin", "jax_plugins.xla_cuda13")}
_GPUS_PER_HOST = 8


@dataclass(frozen=True)
class Slice:
    """Devices that are used together.

    Attributes:
        name: the name, in one spelling for each slice.
        kind: what one device is.
        devices: their number, in all slices together.
        hosts: the number of machines that they are in.
        shape: of a TPU slice, the chips along each dimension; of GPUs, (hosts, GPUs of a host).
        slices: the number of TPU slices joined by the data-centre network; 1 for GPUs.
        topology: the name of the topology for JAX.
        topology_arguments: further arguments of `jax.experimental.topologies.get_topology_desc`.
    """

    name: str
    kind: DeviceKind
    devices: int
    hosts: int
    shape: tuple[int, ...]
    slices: int
    topology: str
    topology_arguments: Mapping[str, Any]


def parse_slice(name: str) -> Slice:
    """Returns the slice of a name.

    Args:
        name: such as "v4-8", "v5litepod-16", "2xv5e-256", "h200" or "8xh100".

    Raises:
        UserError: no slice has that name.

    >>> parse_slice("v4-8").devices, parse_slice("2xv5e-256").devices, parse_slice("8xh100").hosts
    (4, 512, 1)
    """
    found = re.fullmatch(r"(?:(\d+)x)?(.+)", name.strip().lower())
    count, rest = (int(found[1] or 1), found[2]) if found else (0, name)
    if count >= 1 and rest in GPU_MODELS:
        return _gpu_slice(rest, count)
    tpu = re.fullmatch(r"(v\d\w*)-(\d+)", rest)
    version = _ALIASES.get(tpu[1], tpu[1]) if tpu else ""
    if tpu and count >= 1 and version in _SHAPES:
        chips, odd = divmod(int(tpu[2]), _CORES[version])
        if not odd and chips in _SHAPES[version]:
            return _tpu_slice(version, chips, count)
    near = names.near_matches(name, list_slice_names(), most=1)
    raise UserError(
        f"Expected a slice ({describe_valid_names()}), got {name!r}. "
        f"Fix: name one of these{f', such as {near[0]}' if near else ''}."
    )


def list_slice_names() -> list[str]:
    """Returns the names of all single slices and GPUs; a number in front, such as 2x, joins several.

    >>> list_slice_names()[:2], list_slice_names()[-4:]
    (['v4-8', 'v4-16'], ['h200', 'h100', 'a100', 'a100-40'])
    """
    tpus = [f"{kind}-{chips * _CORES[kind]}" for kind, shapes in _SHAPES.items() for chips in shapes]
    return [*tpus, *GPU_MODELS]


def describe_valid_names() -> str:
    """Returns in a few words which names a slice may have."""
    tpus = [
        f"{kind}-{'/'.join(str(chips * _CORES[kind]) for chips in shapes)}"
        for kind, shapes in _SHAPES.items()
    ]
    return f"{', '.join(tpus)}, several such as 2xv5e-256, or GPUs: {', '.join(GPU_MODELS)}, 8xh100"


def topology_devices(target: Slice) -> list[Any]:
    """Returns the compiler's devices of a slice, for shardings of programs that are compiled and never run.

    JAX must have been imported with `ENVIRONMENT` set.

    Args:
        target: the slice.

    Returns:
        JAX devices that no array can be put on.

    Raises:
        UserError: the compiler of that platform is not installed.
    """
    import jax
    from jax.experimental import topologies

    require_compiler(target.kind.platform)
    jax.devices()  # finds and registers the plug-ins
    platform = "cuda" if target.kind.platform == "gpu" else target.kind.platform
    described = topologies.get_topology_desc(target.topology, platform=platform, **target.topology_arguments)
    return list(described.devices)


def require_compiler(platform: str) -> None:
    """Checks that the compiler of a platform, "tpu" or "gpu", is installed.

    Raises:
        UserError: it is not.
    """
    package, module = _COMPILERS[platform]
    try:
        found = importlib.util.find_spec(module) is not None
    except ImportError:
        found = False
    if not found:
        raise UserError(
            f"Expected the {platform.upper()} compiler ({package}) to be installed, got none. Fix: "
            f"{install_command('plan')}"
        )


def _tpu_slice(version: str, chips: int, count: int) -> Slice:
    shape = _SHAPES[version][chips]
    host = (*shape, 1)[:3] if version in ("v5e", "v6e") and chips <= 8 else (2, 2, 1)
    arguments: dict[str, Any] = {"chips_per_host_bounds": host}
    if version == "v4":
        arguments["chip_config_name"] = "megacore"  # one device a chip, as on real ones
    if count > 1:
        arguments["num_slices"] = count
    number = chips * _CORES[version]
    return Slice(
        name=f"{count}x{version}-{number}" if count > 1 else f"{version}-{number}",
        kind=DEVICE_KINDS[version],
        devices=count * chips,
        hosts=count * (chips // math.prod(host)),
        shape=shape,
        slices=count,
        topology=f"{version}:{'x'.join(map(str, shape))}",
        topology_arguments=MappingProxyType(arguments),
    )


def _gpu_slice(model: str, count: int) -> Slice:
    hosts, odd = divmod(count, _GPUS_PER_HOST) if count > _GPUS_PER_HOST else (1, 0)
    if odd:
        whole = _GPUS_PER_HOST * hosts
        raise UserError(
            f"Expected at most {_GPUS_PER_HOST} GPUs, or a multiple of that, got {count}x{model}. "
            f"Fix: name {whole}x{model} or {whole + _GPUS_PER_HOST}x{model}."
        )
    each = count // hosts
    return Slice(
        name=f"{count}x{model}" if count > 1 else model,
        kind=DEVICE_KINDS[model],
        devices=count,
        hosts=hosts,
        shape=(hosts, each),
        slices=1,
        topology=model,
        topology_arguments=MappingProxyType(
            {"target_config": target_config(model), "topology": f"1x{hosts}x{each}"}
        ),
    )


def target_config(model: str) -> str:
    """Returns XLA's description of a GPU, a GpuTargetConfigProto as text, to compile without one."""
    return _TARGET_CONFIG.format(gpu=GPU_MODELS[model], bandwidth=int(DEVICE_KINDS[model].memory_bandwidth))


_TARGET_CONFIG = """\
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {gpu.shared_memory_per_block}
  shared_memory_per_core: {gpu.shared_memory_per_core}
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  core_count: {gpu.cores}
  fpus_per_core: {gpu.fpus_per_core}
  clock_rate_ghz: {gpu.clock_ghz}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {gpu.l2_cache}
  device_memory_size: {gpu.memory}
  cuda_compute_capability {{ major: {gpu.compute_capability[0]} minor: {gpu.compute_capability[1]} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{gpu.description}"
"""
