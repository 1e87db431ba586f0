"""Safetensors: the tensors of a file by name, before they are read, and files written tensor by tensor."""

import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.safetensors_header import DTYPES, METADATA, read_header
from elm_jax.weights import tensors
from elm_jax.weights.tensors import Tensor

NAMES = {dtype: name for name, dtype in DTYPES.items()}


def list_tensors(where: storage.PathLike) -> dict[str, Tensor]:
    """Returns the tensors of a file by name, without reading them.

    Raises:
        UserError: If the file is absent, cut short or something else.
    """
    file = storage.path(where)
    if not file.exists():
        raise UserError(f"Expected a safetensors file at {str(file)!r}, got none. Fix: correct the path.")
    with tensors.open_file(file) as stream:
        header = read_header(stream, file=str(file))
    return {
        name: tensors.tensor_from_file(name, file, entry.start, entry.shape, entry.dtype)
        for name, entry in header.tensors.items()
    }


def write(where: storage.PathLike, arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Writes named arrays as one file, one after the other, so that at most one view is copied at a time.

    Raises:
        UserError: If the system refuses.
    """
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
            f"Expected to write {str(target)!r}, got {error.strerror or error}. Fix: free space there, or "
            "choose another directory."
        ) from error
    finally:
        if temporary.exists():
            temporary.unlink()


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yields an array a few rows at a time, so that transposing one stays in the cache."""
    if array.ndim == 0 or not array.size:
        yield array
        return
    rows = max(1, tensors.BLOCK_BYTES // (array[0].size * array.dtype.itemsize))
    for start in range(0, len(array), rows):
        yield array[start : start + rows]
