"""Slices: devices that are had together, a TPU pod's slice or some GPUs, with the memory of each."""

import re
from dataclasses import dataclass

from elm_jax import names
from elm_jax.errors import UserError

GB = 1e9
# Devices by the number in a TPU slice's name, and the memory of one in GB. Vendors' figures: a TPU's GB are
# really 2**30 bytes, and the 7 % that this leaves out is about what its runtime keeps.
TPUS = {
    "v2": (1, 8),  # named by cores, and a core is a device
    "v3": (1, 16),
    "v4": (2, 32),  # named by cores, of which a device has two
    "v5p": (2, 95),
    "v5e": (1, 16),
    "v5litepod": (1, 16),
    "v6e": (1, 32),
}
GPUS = {"a100-40": 40, "a100": 80, "h100": 80, "h200": 141}


@dataclass(frozen=True)
class Slice:
    """Devices that are had together."""

    name: str
    devices: int
    memory: int  # bytes of each
    kind: str = ""  # of device: one of TPUS or GPUS


def slice_of(name: str) -> Slice:
    """Returns a slice by name: a TPU's, or a number of GPUs.

    >>> slice_of("v4-8").devices, slice_of("v5e-256").devices, slice_of("8xh100").devices
    (4, 256, 8)
    """
    lower = name.lower()
    if tpu := re.fullmatch(r"(v\d\w*)-(\d+)", lower):
        per, memory = TPUS[names.resolve(tpu[1], TPUS, kind="TPU", where="elm_jax")]
        devices, rest = divmod(int(tpu[2]), per)
        if devices < 1 or rest:
            raise UserError(
                f"A {tpu[1]} slice is named by a multiple of {per}, such as {tpu[1]}-8; {name!r} came."
            )
        return Slice(lower, devices, int(memory * GB), tpu[1])
    gpu = re.fullmatch(r"(?:(\d+)x)?(.+)", lower)
    known = gpu[2] if gpu else lower
    if known not in GPUS or (gpu and gpu[1] and int(gpu[1]) < 1):
        raise UserError(
            f"A slice is wanted, a TPU's such as v4-8 ({', '.join(TPUS)}) or GPUs such as 8xh100 "
            f"({', '.join(GPUS)}); {name!r} came."
        )
    return Slice(lower, int(gpu[1] or 1) if gpu else 1, int(GPUS[known] * GB), known)
