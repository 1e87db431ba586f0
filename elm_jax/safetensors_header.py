"""Safetensors header: reads from a file what tensors it has, their types, shapes and places.

A file is the length of its header in 8 bytes, the header as JSON, and the tensors. The package of that name
maps the file or copies all of it; here only the header is read.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import IOBase
from typing import IO, Any

import numpy as np
from ml_dtypes import bfloat16

from elm_jax.errors import UserError

METADATA = "__metadata__"
MAX_HEADER_BYTES = 10**8
DTYPES: Mapping[str, np.dtype] = {
    "BF16": np.dtype(bfloat16),
    **{f"F{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
    **{f"{kind.upper()}{8 * size}": np.dtype(f"<{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)},
    "BOOL": np.dtype(bool),
}
"""The names that safetensors gives to types."""


@dataclass(frozen=True)
class TensorEntry:
    """What a header says of one tensor.

    Attributes:
        dtype: The type of its elements.
        shape: Its shape.
        start: The byte of the file where it starts.
        end: The byte after its last.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class SafetensorsHeader:
    """The header of a file.

    Attributes:
        tensors: Name -> entry.
        metadata: What else the file says of itself.
    """

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, Any]


def read_header(
    stream: IO[bytes] | IOBase, *, file: str, fix: str = "download or copy it again"
) -> SafetensorsHeader:
    """Reads the header of a file and checks that the file has all its tensors.

    Args:
        stream: The open file.
        file: What errors call it.
        fix: What they advise.

    Raises:
        UserError: If the file is cut short, is something else, or has a type that is not supported.
    """

    def broken(why: str) -> UserError:
        return UserError(f"Expected a whole safetensors file at {file!r}, got one whose {why}. Fix: {fix}.")

    total = stream.seek(0, 2)
    stream.seek(0)
    size = int.from_bytes(stream.read(8), "little")
    if total < 8 or size > min(total - 8, MAX_HEADER_BYTES):
        raise broken(f"header should have {size} bytes, but the file has {total}")
    try:
        header = json.loads(stream.read(size))
    except (ValueError, RecursionError) as error:
        raise broken(f"header is no JSON ({type(error).__name__})") from None
    if not isinstance(header, dict):
        raise broken("header is no JSON object")
    metadata = header.pop(METADATA, None)
    tensors, last = {}, 8 + size
    for name, value in header.items():
        dtype, shape, start, end = _parse_entry(value) or (None, (), 0, 0)
        if dtype is None:
            raise broken(f"header should have type, shape and place of {name!r}, but has {value!r:.200}")
        if dtype not in DTYPES:
            raise UserError(
                f"Expected {name!r} in {file!r} as one of {', '.join(DTYPES)}, got {dtype:.20}. Fix: convert "
                "it first."
            )
        expected = math.prod(shape) * DTYPES[dtype].itemsize
        if end - start != expected:
            raise broken(f"tensor {name!r} of {shape} should have {expected} bytes, but has {end - start}")
        entry = TensorEntry(DTYPES[dtype], shape, 8 + size + start, 8 + size + end)
        if entry.end > total:
            raise broken(f"tensor {name!r} should end at byte {entry.end}, but the file has {total}")
        tensors[name], last = entry, max(last, entry.end)
    if last != total:
        raise broken(f"last tensor ends at byte {last}, but the file has {total}")
    return SafetensorsHeader(tensors, metadata if isinstance(metadata, dict) else {})


def _parse_entry(value: Any) -> tuple[str, tuple[int, ...], int, int] | None:
    """Returns type, shape, start and end of a tensor; None if the header has another form."""
    try:
        dtype, shape, (start, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
    except (KeyError, TypeError, ValueError):
        return None
    whole = all(type(number) is int and number >= 0 for number in (*shape, start, end))
    return (dtype, shape, start, end) if whole and isinstance(dtype, str) else None
