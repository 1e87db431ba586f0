"""Memory: the bytes that a compiled program takes on one device."""

import math
import re
from typing import Any

import jax

from elm_jax.aot.devices import GIB
from elm_jax.aot.program import Program

_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
_REQUIRED = (
    re.compile(r"total memory required[^(]*\(([\d.]+)([BKMGT]?)\)"),
    re.compile(r"Used ([\d.]+)([BKMGT]?) of [\d.]+[BKMGT]? hbm"),
    re.compile(r"([\d.]+)([BKMGT]?) exceeds available HBM"),
)


def count_program_bytes(compiled: Any) -> int:
    """Returns the bytes per device that a compiled program takes when it runs.

    That is arguments, results and temporaries, with donated arguments counted once, and the code.

    Args:
        compiled: what `jax.jit(f).lower(...).compile()` returns, for devices that are present or not.
    """
    found = compiled.memory_analysis()
    return (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
        + found.temp_size_in_bytes
        + found.generated_code_size_in_bytes
    )


def xla_peak_bytes(compiled: Any) -> int | None:
    """Returns the peak that XLA tells, None where this JAX tells none.

    It knows when temporaries live, and on TPUs counts those in on-chip memory too.
    """
    found = getattr(compiled.memory_analysis(), "peak_memory_in_bytes", None)
    return None if found is None else int(found)


def resident_bytes(program: Program) -> int:
    """Returns the bytes per device of what lies there beside a program's arguments and results."""
    return device_bytes(program.resident)


def device_bytes(tree: Any) -> int:
    """Returns the bytes that a tree of shapes with shardings takes on one device."""
    return sum(_leaf_bytes(leaf) for leaf in jax.tree.leaves(tree))


def required_bytes(message: str) -> int | None:
    """Returns the bytes per device that a refused program needs; None if the compiler does not say.

    >>> required_bytes("total memory required for HLO temporaries (1.50G) exceeds available HBM (1.00G)")
    1610612736
    """
    for pattern in _REQUIRED:
        if found := pattern.search(message):
            return int(float(found[1]) * _UNITS[found[2] or "B"])
    return None


def _leaf_bytes(leaf: Any) -> int:
    sharding = leaf.sharding
    shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
    return math.prod(shape) * leaf.dtype.itemsize
