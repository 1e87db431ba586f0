"""Prepared parts: files of a task's row ranges, joined into the file of all its rows.

A part is a file of tokenised rows as `prepared_files.save` writes it. Parts are copied array by array, so one
array of one part is in memory at a time, and the bytes are those that `save` writes of all rows at once.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from etils import epath

from elm_jax import storage
from elm_jax.data import prepared_files, token_losses
from elm_jax.data.prepared_files import ABOUT, COUNTS, LOSSES
from elm_jax.data.row_digests import RowDigester, RowDigests
from elm_jax.data.token_losses import TokenizationReport
from elm_jax.data.tokenized_rows import StoredExamples
from elm_jax.records import RowCounts
from elm_jax.safetensors_header import DTYPES, METADATA, SafetensorsHeader, read_header

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class _Part:
    """A file of tokenised rows, of which an array is read when it is needed."""

    file: epath.Path
    header: SafetensorsHeader

    def read(self, name: str) -> np.ndarray:
        entry = self.header.tensors[name]
        with self.file.open("rb") as stream:
            stream.seek(entry.start)
            return np.frombuffer(stream.read(entry.end - entry.start), entry.dtype)


def join_parts(
    files: Sequence[epath.Path], target: storage.PathLike, cache_key: str, counts: RowCounts
) -> None:
    """Writes the rows of parts, one part after the other, into one file.

    Args:
        files: The parts, in the order of their rows.
        target: The file to write.
        cache_key: The cache key of all rows.
        counts: What became of all rows.
    """
    parts = [_open_part(file) for file in files]
    losses = sum(
        (token_losses.parse_tokenization_report(part.read(LOSSES).tobytes()) for part in parts),
        TokenizationReport(),
    )
    losses = replace(losses, missing=token_losses.keep_worst(losses.missing))
    own = {
        "fingerprint": np.frombuffer(cache_key.encode(), np.uint8),
        LOSSES: np.frombuffer(token_losses.dump_tokenization_report(losses), np.uint8),
        COUNTS: prepared_files.pack_counts(counts),
    }
    # The order and the header of the package safetensors: wide types first, then by name.
    dtypes = {name: entry.dtype for name, entry in parts[0].header.tensors.items()}
    sizes = {
        name: (own[name].size if name in own else _count(parts, name)) * dtype.itemsize
        for name, dtype in dtypes.items()
    }
    own[ABOUT] = prepared_files.pack_about(
        _digest_rows(files), sizes, lambda name: [own[name]] if name in own else _join(parts, name)
    )
    dtypes[ABOUT] = own[ABOUT].dtype
    names = sorted(dtypes, key=lambda name: (-dtypes[name].itemsize, name))
    header: dict[str, Any] = {METADATA: {"format": str(storage.FORMAT)}}
    start = 0
    for name in names:
        size = own[name].size if name in own else _count(parts, name)
        end = start + size * dtypes[name].itemsize
        header[name] = {"dtype": _DTYPE_NAMES[dtypes[name]], "shape": [size], "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def content() -> Iterator[bytes]:
        yield len(text).to_bytes(8, "little") + text
        for name in names:
            for array in [own[name]] if name in own else _join(parts, name):
                yield array.tobytes()

    storage.write_stream(target, content())


def _digest_rows(files: Sequence[epath.Path]) -> RowDigests:
    digester = RowDigester()
    for file in files:
        for example in StoredExamples(prepared_files.load(file), ""):
            digester.add(example)
    return digester.finish()


def _open_part(file: epath.Path) -> _Part:
    with file.open("rb") as stream:
        return _Part(file, read_header(stream, file=str(file)))


def _holds_offsets(name: str) -> bool:
    """Returns whether an array says where lists begin and end, and not what is in them."""
    return name == "choice_starts" or name.endswith("/offsets")


def _count(parts: Sequence[_Part], name: str) -> int:
    sizes = [part.header.tensors[name].shape[0] - _holds_offsets(name) for part in parts]
    return sum(sizes) + _holds_offsets(name)


def _join(parts: Sequence[_Part], name: str) -> Iterator[np.ndarray]:
    if not _holds_offsets(name):
        yield from (part.read(name) for part in parts)
        return
    end = np.zeros(1, np.int64)
    yield end
    for part in parts:
        edges = part.read(name)
        yield edges[1:] + end
        end = end + edges[-1:]
