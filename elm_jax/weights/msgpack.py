"""MessagePack as Flax writes it: the tree of a file with its arrays left where they are.

Read in place rather than unpacked whole, so that a checkpoint of 11 GB costs no memory beside its parameters.
An array is an extension of type 1 that holds its shape, the name of its type and its bytes; one of more than
a gigabyte comes in flat chunks.
"""

import math
import struct
from io import IOBase
from typing import IO, Any

import numpy as np
from etils import epath
from ml_dtypes import bfloat16

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.weights import tensors
from elm_jax.weights.tensors import Tensor

MAX_DEPTH = 64
NDARRAY, SCALAR = 1, 3  # Flax's types of extension
CHUNKED = "__msgpack_chunked_array__"
# First byte -> how the number that follows is packed: the length of what comes next, or the value itself.
_STRINGS = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I", 0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}
_EXTENSIONS = {0xC7: ">B", 0xC8: ">H", 0xC9: ">I"}
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_ARRAYS = {0xDC: ">H", 0xDD: ">I"}
_MAPS = {0xDE: ">H", 0xDF: ">I"}
_NUMBERS = {0xCA + place: f">{letter}" for place, letter in enumerate("fdBHIQbhiq")}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


def list_tensors(where: storage.PathLike) -> dict[str, Any]:
    """Returns a file's tree with a `Tensor` for every array; a UserError if it is cut short or another."""
    file = storage.path(where)
    with tensors.open_file(file) as stream:
        total = tensors.count_file_bytes(stream)
        try:
            tree = _Reader(stream, total, file).read_value("", 0)
            if stream.tell() != total:
                raise ValueError("bytes follow its end")
        except (ValueError, TypeError, OverflowError) as error:
            raise UserError(
                f"Expected a whole MessagePack file of Flax at {str(file)!r}, got one that is damaged: "
                f"{error}. Fix: download or copy it again."
            ) from None
    if not isinstance(tree, dict):
        raise UserError(
            f"Expected a tree of parameters in {str(file)!r}, got a {type(tree).__name__}. Fix: name another "
            "file."
        )
    return tree


class _Reader:
    """A place in a file and what is left of it."""

    def __init__(self, stream: IO[bytes] | IOBase, total: int, file: epath.Path) -> None:
        self.stream, self.total, self.file = stream, total, file

    def read_value(self, name: str, depth: int) -> Any:
        """Returns the next value; `name` is its path in the tree."""
        if depth > MAX_DEPTH:
            raise ValueError(f"it is more than {MAX_DEPTH} levels deep")
        kind = self.read_bytes(1)[0]
        if kind < 0x80 or kind >= 0xE0:
            return kind if kind < 0x80 else kind - 256
        if kind < 0x90 or kind in _MAPS:
            size = kind & 0x0F if kind < 0x90 else self.read_number(_MAPS[kind])
            return self.read_entries(name, size, depth)
        if kind < 0xA0 or kind in _ARRAYS:
            size = kind & 0x0F if kind < 0xA0 else self.read_number(_ARRAYS[kind])
            return [self.read_value(name, depth + 1) for _ in range(size)]
        if kind < 0xC0 or kind in _STRINGS:
            content = self.read_bytes(kind & 0x1F if kind < 0xC0 else self.read_number(_STRINGS[kind]))
            return content if kind in (0xC4, 0xC5, 0xC6) else content.decode()
        if kind in _NUMBERS:
            return self.read_number(_NUMBERS[kind])
        if kind in _CONSTANTS:
            return _CONSTANTS[kind]
        if kind in _EXTENSIONS or kind in _FIXED_EXTENSIONS:
            size = _FIXED_EXTENSIONS.get(kind) or self.read_number(_EXTENSIONS[kind])
            return self.read_array(name, size, depth)
        raise ValueError(f"byte {self.stream.tell() - 1} begins no value")

    def read_entries(self, name: str, size: int, depth: int) -> Any:
        tree = {}
        for _ in range(size):
            key = self.read_value(name, depth + 1)
            if not isinstance(key, str):
                raise ValueError(f"a key of {name!r} is no string")
            tree[key] = self.read_value(f"{name}/{key}" if name else key, depth + 1)
        return self.join_chunks(name, tree) if CHUNKED in tree else tree

    def join_chunks(self, name: str, tree: dict[str, Any]) -> Tensor:
        """Returns the array whose flat chunks a tree has."""
        shape, parts = tree.get("shape"), tree.get("chunks")
        if not (isinstance(shape, dict) and isinstance(parts, dict) and parts):
            raise ValueError(f"{name!r} comes in chunks, but has no shape or no chunks")
        sizes: tuple[Any, ...] = tuple(shape.get(str(axis)) for axis in range(len(shape)))
        found = [parts.get(str(number)) for number in range(len(parts))]
        flat = [part for part in found if isinstance(part, Tensor) and len(part.shape) == 1]
        whole = all(type(size) is int and size >= 0 for size in sizes) and len(flat) == len(found)
        if not whole or sum(part.shape[0] for part in flat) != math.prod(sizes):
            raise ValueError(f"the chunks of {name!r} do not make its shape")
        return tensors.concatenate(flat, sizes, name)

    def read_array(self, name: str, size: int, depth: int) -> Tensor:
        kind = self.read_bytes(1)[0]
        end = self.stream.tell() + size
        if kind not in (NDARRAY, SCALAR):
            raise ValueError(f"{name!r} is an extension of type {kind}, which is no array")
        if self.read_bytes(1)[0] != 0x93:
            raise ValueError(f"{name!r} should be a shape, a type and bytes")
        shape, type_name = self.read_value(name, depth + 1), self.read_value(name, depth + 1)
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"the shape of {name!r} is no list of sizes")
        dtype = _dtype(type_name, name)
        mark = self.read_bytes(1)[0]
        if mark not in (0xC4, 0xC5, 0xC6):
            raise ValueError(f"{name!r} should end with its bytes")
        count = self.read_number(_STRINGS[mark])
        start = self.stream.tell()
        if count != math.prod(shape) * dtype.itemsize or start + count != end:
            raise ValueError(f"{name!r} of {tuple(shape)} does not take the {count} bytes it has")
        if end > self.total:
            raise ValueError(f"{name!r} should end at byte {end}, but the file has {self.total}")
        self.stream.seek(end)
        return tensors.tensor_from_file(name, self.file, start, tuple(shape), dtype)

    def read_number(self, packed: str) -> Any:
        return struct.unpack(packed, self.read_bytes(struct.calcsize(packed)))[0]

    def read_bytes(self, size: int) -> bytes:
        if self.stream.tell() + size > self.total:
            raise ValueError(f"the file ends at byte {self.total}, within a value")
        return self.stream.read(size)


def _dtype(type_name: Any, name: str) -> np.dtype:
    # Old files call bfloat16 by the bytes it takes.
    if type_name in ("bfloat16", "V2", b"V2"):
        return np.dtype(bfloat16)
    try:
        found = np.dtype(str(type_name.decode() if isinstance(type_name, bytes) else type_name))
    except (TypeError, ValueError, SyntaxError):
        raise ValueError(f"{name!r} has an unknown type {type_name!r:.50}") from None
    if found.kind not in "biuf":
        raise ValueError(f"{name!r} is of type {found}, not of numbers")
    return found
