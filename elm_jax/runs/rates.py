"""Rates: what a device could compute, read and send in a second at most, by its vendor's data sheet.

Where each figure is from. TPUs: the page of each version in Google Cloud's documentation, which gives a
chip's traffic in both directions over all of its ports (v5e 400 GB/s over 4, v5p 1,200 over 6, v6e 800 over
4); v4's links are those of Jouppi et al. 2023 (arXiv 2304.01433), 6 of 50 GB/s a direction. GPUs: NVIDIA's
data sheets of the A100, H100 and H200 in their SXM form, whose NVLink is told in both directions (600 and 900
GB/s); between machines the network cards of a DGX A100 and a DGX H100, one of 200 or 400 Gbit/s a GPU. None
of them was measured.
"""

from dataclasses import dataclass

from elm_jax.errors import UserError
from elm_jax.runs import flops
from elm_jax.runs.slices import Slice

GBPS = 1e9
IN_A_MACHINE = 8  # GPUs that NVLink joins
LINKS = 2  # of a TPU's, that a ring along one axis of a mesh takes: the two of one dimension of the torus


@dataclass(frozen=True)
class Rates:
    """What one device could do in a second."""

    flops: float  # products in bfloat16
    memory: float  # bytes read or written
    ring: float  # bytes sent to its neighbours in a ring of devices
    host: int  # devices that one host has, and so one process of a job


_MEMORY = {
    "v4": 1200,
    "v5e": 819,
    "v5p": 2765,
    "v6e": 1638,
    "a100-40": 1555,
    "a100": 2039,
    "h100": 3350,
    "h200": 4800,
}
_LINK = {"v4": 50, "v5e": 50, "v5p": 100, "v6e": 100}  # of one, in one direction
_NVLINK = {"a100-40": 300, "a100": 300, "h100": 450, "h200": 450}  # in one direction
_NETWORK = {"a100-40": 25, "a100": 25, "h100": 50, "h200": 50}  # of a GPU, between machines
_HOST = {"v4": 4, "v5e": 4, "v5p": 4, "v6e": 4}  # of a slice of several hosts; a v5e or v6e host alone has 8


def rates_of(found: Slice) -> Rates:
    """Returns the rates of a slice's devices; a UserError for those whose figures are not in the table.

    >>> from elm_jax.runs.slices import slice_of
    >>> rates_of(slice_of("8xh100"))
    Rates(flops=989000000000000.0, memory=3350000000000.0, ring=450000000000.0, host=8)
    """
    kind = "v5e" if found.kind == "v5litepod" else found.kind
    if kind not in _MEMORY:
        raise UserError(
            f"Rates of {found.kind} are wanted to predict times, but the table has those of "
            f"{', '.join(_MEMORY)} alone. Name another slice, or plan a size, which tells memory only."
        )
    if kind in _LINK:
        ring = LINKS * _LINK[kind]
        host = found.devices if kind in ("v5e", "v6e") and found.devices <= 8 else _HOST[kind]
    else:
        ring = _NVLINK[kind] if found.devices <= IN_A_MACHINE else _NETWORK[kind]
        host = IN_A_MACHINE
    peak = flops.PEAKS[kind.partition("-")[0]]
    return Rates(peak, _MEMORY[kind] * GBPS, ring * GBPS, min(host, found.devices))
