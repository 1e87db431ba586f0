"""Safetensors: the header of a file, its tensors left where they are, and files written tensor by tensor.

A file is the length of its header in 8 bytes, the header, JSON that tells type, shape and place of every
tensor, and the tensors. The package of that name maps the file or copies all of it; this room needs neither.
"""

import json
import math
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ml_dtypes import bfloat16

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.weights import tensors
from elm_jax.weights.tensors import Tensor

LONGEST_HEADER = 10**8
METADATA = "__metadata__"
DTYPES = {
    "BF16": np.dtype(bfloat16),
    **{f"F{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
    **{f"{kind.upper()}{8 * size}": np.dtype(f"<{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)},
    "BOOL": np.dtype(bool),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def index(where: storage.PathLike) -> dict[str, Tensor]:
    """Returns the tensors of a file by name; a UserError if it is absent, cut short or something else."""
    file = storage.path(where)

    def broken(why: str) -> UserError:
        return UserError(f"{str(file)!r} is no whole safetensors file: {why}. Download or copy it again.")

    if not file.exists():
        raise UserError(f"A safetensors file is wanted at {str(file)!r}, but no file is there.")
    with tensors.open_file(file) as stream:
        total = tensors.count_file_bytes(stream)
        size = int.from_bytes(stream.read(8), "little")
        if total < 8 or size > min(total - 8, LONGEST_HEADER):
            raise broken(f"its header should have {size} bytes, but the file has {total} in all")
        content = stream.read(size)
    try:
        header = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise broken(f"its header is no JSON ({type(error).__name__})") from None
    if not isinstance(header, dict):
        raise broken("its header is no JSON object")
    header.pop(METADATA, None)
    found, start, end = {}, 8 + size, 8 + size
    for name, told in header.items():
        dtype, shape, place = _described(told) or (None, None, None)
        if dtype is None or shape is None or place is None:
            raise broken(f"its header should give type, shape and place of {name!r}, and gives {told!r:.200}")
        if dtype not in DTYPES:
            raise UserError(
                f"{str(file)!r} holds {name!r} as {dtype:.20}, but {', '.join(DTYPES)} are read. "
                "Convert it first."
            )
        wanted = math.prod(shape) * DTYPES[dtype].itemsize
        if place[1] - place[0] != wanted:
            raise broken(f"{name!r} of {shape} should take {wanted} bytes, but has {place[1] - place[0]}")
        end = max(end, start + place[1])
        if end > total:
            raise broken(f"{name!r} should end at byte {end}, but the file has {total}")
        found[name] = tensors.tensor_from_file(name, file, start + place[0], shape, DTYPES[dtype])
    if end != total:
        raise broken(f"its last tensor ends at byte {end}, but the file has {total}")
    return found


def write(where: storage.PathLike, arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Writes named arrays as one file, each copied on its own: views cost no memory until their turn."""
    target = storage.path(where)
    header: dict[str, Any] = {METADATA: dict(metadata)}
    start = 0
    # Wider types first, as the package does, so that every tensor is aligned.
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    for name in order:
        end = start + arrays[name].size * arrays[name].dtype.itemsize
        header[name] = {
            "dtype": NAMES[np.dtype(arrays[name].dtype)],
            "shape": list(arrays[name].shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex}.tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for name in order:
                for block in _blocks(arrays[name]):
                    stream.write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
        temporary.replace(target)
    except OSError as error:
        raise UserError(
            f"{str(target)!r} was to be written, but the system refused ({error.strerror or error}). "
            "Free space there, or choose another directory."
        ) from error
    finally:
        if temporary.exists():
            temporary.unlink()


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yields an array a few rows at a time, so that turning a transposed one stays in the cache."""
    if array.ndim == 0 or not array.size:
        yield array
        return
    rows = max(1, tensors.BLOCK // (array[0].size * array.dtype.itemsize))
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def _described(told: Any) -> tuple[str, tuple[int, ...], tuple[int, int]] | None:
    """Returns type, shape and place of a tensor, if the header tells them."""
    try:
        dtype, shape, (start, end) = told["dtype"], tuple(told["shape"]), told["data_offsets"]
    except (KeyError, TypeError, ValueError):
        return None
    whole = all(type(number) is int and number >= 0 for number in (*shape, start, end))
    return (dtype, shape, (start, end)) if whole and isinstance(dtype, str) else None
