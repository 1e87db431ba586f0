"""Tensors: what a checkpoint holds, by name and shape, before any of it is read.

A tensor fills an array that its reader gives it and converts on the way, so that no checkpoint lies in memory
beside the parameters made of it. Files are read, never mapped: a mapped page counts as memory too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import IOBase
from typing import IO

import numpy as np
from etils import epath
from ml_dtypes import bfloat16

from elm_jax import storage
from elm_jax.errors import UserError

# Bytes of a file in memory at a time: so few that a block stays in the cache while it is turned.
BLOCK_BYTES = 2**20
FLOATS = tuple(np.dtype(kind) for kind in (bfloat16, np.float16, np.float32, np.float64))


@dataclass(frozen=True)
class Tensor:
    """One tensor that has not been read.

    Attributes:
        name: Its name in the file.
        file: The file.
        shape: Its shape in the file.
        dtype: Its type in the file.
        fill: Writes it into an array of that shape and of any floating type.
        axes: The file's axes in the network's order; None if that is the file's order.
        joined_axis: The axis that is one with the next in the network, as heads and their width are.
    """

    name: str
    file: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fill: Callable[[np.ndarray], None]
    axes: tuple[int, ...] | None = None
    joined_axis: int | None = None

    @property
    def network_shape(self) -> tuple[int, ...]:
        """The shape as the network has it."""
        shape = self._transposed_shape
        if self.joined_axis is None:
            return shape
        before, pair = shape[: self.joined_axis], shape[self.joined_axis : self.joined_axis + 2]
        return (*before, pair[0] * pair[1], *shape[self.joined_axis + 2 :])

    @property
    def _transposed_shape(self) -> tuple[int, ...]:
        return self.shape if self.axes is None else tuple(self.shape[axis] for axis in self.axes)

    def shape_in_file(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Returns a shape of the network's as the file has it."""
        if self.axes is None or len(shape) != len(self.axes):
            return tuple(shape)
        return tuple(shape[axis] for axis in np.argsort(self.axes))

    def read_into(self, out: np.ndarray) -> None:
        """Reads the tensor into an array, its rows one after the other, that is as the network has it."""
        unjoined = out.reshape(self._transposed_shape, copy=False)
        self.fill(unjoined if self.axes is None else unjoined.transpose(np.argsort(self.axes)))

    def read(self) -> np.ndarray:
        """Returns the tensor as the network has it, in its own type."""
        out = np.empty(self.network_shape, self.dtype)
        self.read_into(out)
        return out


def transpose(tensor: Tensor) -> Tensor:
    """Returns a tensor whose axes the network has the other way round."""
    return replace(tensor, axes=tuple(reversed(range(len(tensor.shape)))))


def scale(tensor: Tensor, factor: float) -> Tensor:
    """Returns a tensor that comes multiplied by a number."""
    return replace(tensor, fill=partial(_multiply, tensor, factor))


def tensor_from_array(name: str, file: str, value: np.ndarray) -> Tensor:
    """Returns a tensor that is in memory already."""
    return Tensor(name, file, value.shape, value.dtype, partial(_copy, value))


def tensor_from_file(
    name: str, file: epath.Path, offset: int, shape: tuple[int, ...], dtype: np.dtype
) -> Tensor:
    """Returns a tensor that lies in a file from a byte on, row after row."""
    return Tensor(name, str(file), shape, dtype, partial(_read, name, file, offset, dtype))


def concatenate(parts: Sequence[Tensor], shape: tuple[int, ...], name: str) -> Tensor:
    """Returns a tensor whose elements lie in flat parts, one after the other."""
    return replace(parts[0], name=name, shape=shape, fill=partial(_join, parts, shape))


def open_file(file: epath.Path) -> IO[bytes] | IOBase:
    """Opens a file to read its bytes; one sentence if the system refuses, or if it is a pipe or a device."""
    try:
        if storage.is_plain_file(file):
            return file.open("rb")
    except OSError as error:
        raise UserError(
            f"Expected to read {str(file)!r}, got {error.strerror or error}. Fix: check who may read it."
        ) from None
    raise UserError(f"Expected a file at {str(file)!r}, got no plain file. Fix: replace it.")


def count_file_bytes(stream: IO[bytes] | IOBase) -> int:
    """Returns the bytes of an open file and goes back to its first."""
    stream.seek(0, 2)
    total = stream.tell()
    stream.seek(0)
    return total


def _multiply(tensor: Tensor, factor: float, out: np.ndarray) -> None:
    wide = np.empty(tensor.shape, np.float32)
    tensor.fill(wide)
    out[...] = wide * np.float32(factor)


def _copy(value: np.ndarray, out: np.ndarray) -> None:
    out[...] = value


def _join(parts: Sequence[Tensor], shape: tuple[int, ...], out: np.ndarray) -> None:
    flat, start = np.empty(shape, out.dtype).reshape(-1), 0
    for part in parts:
        part.fill(flat[start : start + part.shape[0]])
        start += part.shape[0]
    out[...] = flat.reshape(shape)


def _read(name: str, file: epath.Path, offset: int, dtype: np.dtype, out: np.ndarray) -> None:
    with open_file(file) as stream:
        stream.seek(offset)
        what = f"{name!r} in {str(file)!r}"
        _read_rows(stream, out.reshape(1) if out.ndim == 0 else out, dtype, what)


def _read_rows(stream: IO[bytes] | IOBase, out: np.ndarray, dtype: np.dtype, what: str) -> None:
    """Reads an array a few rows at a time."""
    if not out.size:
        return
    row = dtype.itemsize * out[0].size
    if row > BLOCK_BYTES and out.ndim > 1:
        for part in out:
            _read_rows(stream, part, dtype, what)
        return
    rows = max(1, BLOCK_BYTES // row)
    for start in range(0, len(out), rows):
        part = out[start : start + rows]
        wanted = dtype.itemsize * part.size
        content = stream.read(wanted)
        if len(content) != wanted:
            raise UserError(f"Expected more bytes of {what}, got the end of the file. Fix: copy it again.")
        part[...] = np.frombuffer(content, dtype).reshape(part.shape)
