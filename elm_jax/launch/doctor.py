"""`elm doctor`: devices, versions, what is missing, and the command that installs it."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from elm_jax import storage
from elm_jax.extras import install_command

CORE = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "seqio", "tensorflow-datasets", "gin-config")
EXTRAS = {
    "hub": ("datasets",),
    "generation": ("rouge-score", "sacrebleu"),
    "buckets": ("s3fs", "gcsfs"),
    "plots": ("matplotlib",),
    "track": ("tensorboard", "wandb"),
    "plan": ("libtpu", "jax-cuda13-plugin"),
    "parity": ("transformers", "torch"),
    "test": ("pytest", "hypothesis", "beartype", "ruff", "basedpyright"),
}


_TPUS = {
    ("0x1ae0", number) for number in ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")
}
"""Vendor and device numbers of v3 to TPU7x on the PCI bus; other devices of the vendor are network cards."""


def doctor() -> dict[str, Any]:
    """Returns devices, versions, packages and free space; `mend` has commands for what is missing."""
    import jax

    devices = [{"id": device.id, "kind": device.device_kind} for device in jax.devices()]
    packages = {name: _version(name) for name in CORE}
    extras = {extra: {name: _version(name) for name in names} for extra, names in EXTRAS.items()}
    mend = [f"pip install '{name}'" for name, installed in packages.items() if installed is None]
    mend += [install_command(extra) for extra, names in extras.items() if None in names.values()]
    if jax.default_backend() == "cpu":
        mend += [install_command(extra) for extra in _find_accelerators()]
    return {
        "python": platform.python_version(),
        "elm_jax": _version("elm_jax"),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "backend": jax.default_backend(),
        "devices": devices,
        "packages": packages,
        "extras": extras,
        "t5x": "installed" if find_spec("t5x") else "absent; nothing here needs it",
        "free_disk_gb": round(shutil.disk_usage(".").free / 1e9, 1),
        "compiled": _compilation_cache(),
        "attention_kernel": _attention_kernel(),
        "mend": mend,
    }


def _find_accelerators(root: Path = Path("/")) -> list[str]:
    """Returns the extras for accelerators that the system has, by a driver's file or the bus they are on."""
    found = ["cuda"] if any((root / "dev").glob("nvidia[0-9]*")) else []
    # v4 has driver files of its own, dev/accel0 and so on; v5e and later have VFIO's, which others have too.
    on_bus = (root / "sys/bus/pci/devices").glob("*/device")
    if any((root / "dev").glob("accel[0-9]*")) or any(map(_is_tpu, on_bus)):
        found.append("tpu")
    return found


def _is_tpu(device: Path) -> bool:
    """Says whether a file of a PCI device's number, beside one of its vendor's, is a TPU's."""
    try:
        return (device.with_name("vendor").read_text().strip(), device.read_text().strip()) in _TPUS
    except OSError:
        return False


def _compilation_cache() -> str:
    """Returns where compiled programs are cached, and how many."""
    import jax

    directory = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if not directory or not jax.config.jax_enable_compilation_cache:  # pyright: ignore[reportAttributeAccessIssue]
        return "not kept"
    programs = list(storage.path(directory).glob("*-cache"))
    size = sum(file.stat().length for file in programs) / 1e6
    return f"{len(programs)} programs, {size:.1f} MB, in {directory}"


def _attention_kernel() -> str:
    """Returns how far the kernel for TPUs is from the formula, where there is a TPU."""
    import jax

    if jax.default_backend() != "tpu":
        return "on TPUs alone"
    from elm_jax.models import attention_check, attention_kernel

    found = f"{attention_check.largest_difference():.1e} of the largest value from the formula, in float32"
    return f"{found}; {attention_kernel.KERNEL_ENV_VARIABLE}=off does without"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
