"""Storage: files that are either whole or absent, local or in a bucket, and fingerprints of what they hold.

Every file is written under a temporary name and renamed, carries a format number, and holds no pickle. JSON
files keep the number in `format`, safetensors files in their metadata.
"""

import hashlib
import io
import json
import math
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from safetensors.numpy import save as dump_safetensors

from elm_jax.errors import UserError
from elm_jax.safetensors_header import read_header

FORMAT = 1
PathLike = str | os.PathLike[str]
_HERE = Path(__file__).parent
# What has the gin files, below `gin/`: in a wheel they lie in the package, in a checkout beside it.
SHIPPED = next(root for root in (_HERE / "_recipes", _HERE.parent) if (root / "gin").is_dir())


def path(where: PathLike) -> epath.Path:
    """Returns a path that may be local, `gs://` or any other that etils knows; `~` is expanded."""
    return epath.Path(os.path.expanduser(os.fspath(where)))


def existing_directory(where: PathLike, *, what: str, remedy: str) -> epath.Path:
    """Returns the directory, or says that `what` is missing there and that `remedy` brings it."""
    directory = path(where)
    if not directory.is_dir():
        raise UserError(f"{what} is wanted at {os.fspath(where)!r}, but no directory is there. {remedy}")
    return directory


def writable_directory(where: PathLike) -> epath.Path:
    """Makes the directory if need be and returns it; one sentence if nothing can be written there."""
    directory = path(where)
    probe = directory / f".probe-{uuid.uuid4().hex}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"An output directory is wanted at {os.fspath(where)!r}, but it cannot be written "
            f"({error.strerror or error}). Choose another with the output flag, or free it."
        ) from error
    return directory


def write_bytes(where: PathLike, content: bytes) -> None:
    """Writes a file whole or not at all: a reader sees the old content, or the new, never a part."""
    target = path(where)
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex}.tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(target)
    except OSError as error:
        if temporary.exists():
            temporary.unlink()
        raise UserError(
            f"{os.fspath(where)!r} was to be written, but the system refused ({error.strerror or error}). "
            "Free space there, or choose another output directory."
        ) from error


def write_json(where: PathLike, value: Mapping[str, Any]) -> None:
    """Writes a JSON object with its format number."""
    text = json.dumps({"format": FORMAT, **value}, indent=2, ensure_ascii=False)
    write_bytes(where, (text + "\n").encode())


def read_json(where: PathLike, *, what: str) -> dict[str, Any]:
    """Reads a JSON object of our format; `what` names it in the error."""
    try:
        value = json.loads(path(where).read_text())
    except FileNotFoundError:
        raise UserError(f"{what} is wanted at {os.fspath(where)!r}, but no file is there.") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(
            f"{what} at {os.fspath(where)!r} is no JSON ({error}); delete it and write it again."
        ) from None
    found = value.get("format") if isinstance(value, dict) else None
    if found != FORMAT:
        raise UserError(f"{what} at {os.fspath(where)!r} should have format {FORMAT}, but {found!r} came.")
    return value


def write_jsonl(where: PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object a line."""
    write_bytes(where, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def read_jsonl(where: PathLike, *, what: str) -> list[dict[str, Any]]:
    """Reads one JSON object a line; a broken line is named."""
    rows = []
    try:
        text = path(where).read_text()
    except FileNotFoundError:
        raise UserError(f"{what} is wanted at {os.fspath(where)!r}, but no file is there.") from None
    # Not `splitlines`, which also cuts at the separators that Unicode allows inside a string.
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{what} at {os.fspath(where)!r}, line {number}, is no JSON ({error}).") from None
    return rows


def read_first_line(where: epath.Path) -> dict[str, Any] | None:
    """Returns the first line of a file of JSON lines; None where that is no JSON object."""
    with where.open() as stream:
        try:
            head = json.loads(stream.readline())
        except ValueError:
            return None
    return head if isinstance(head, dict) else None


def write_arrays(
    where: PathLike, arrays: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes named arrays as safetensors."""
    plain = {name: np.asarray(value, order="C") for name, value in sorted(arrays.items())}
    write_bytes(where, dump_safetensors(plain, metadata={"format": str(FORMAT), **(metadata or {})}))


def read_arrays(where: PathLike, *, what: str) -> dict[str, np.ndarray]:
    """Reads named arrays from safetensors.

    Raises:
        UserError: If the file is absent, cut short or something else; `what` names it.
    """
    try:
        content = bytearray(path(where).read_bytes())  # arrays are views of it that may be changed
    except FileNotFoundError:
        raise UserError(f"{what} is wanted at {os.fspath(where)!r}, but no file is there.") from None
    try:
        header = read_header(io.BytesIO(content), file=os.fspath(where), fix="write it again")
    except UserError as error:
        raise UserError(f"{what}: {error}") from None
    return {
        name: np.frombuffer(content, entry.dtype, math.prod(entry.shape), entry.start).reshape(entry.shape)
        for name, entry in header.tensors.items()
    }


def fingerprint(value: Any) -> str:
    """Returns 16 hexadecimal digits that stand for a JSON-like value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def array_fingerprint(arrays: Mapping[str, Any]) -> str:
    """Returns 16 hexadecimal digits that stand for named arrays: names, shapes, types and bytes."""
    digest = ArrayDigest()
    for name, value in sorted(arrays.items()):
        digest.add(name, np.asarray(value, order="C"))
    return digest.fingerprint()


class ArrayDigest:
    """What `array_fingerprint` returns, of arrays that come one by one in the order of their names."""

    def __init__(self) -> None:
        self._seen = hashlib.sha256()

    def add(self, name: str, array: np.ndarray) -> None:
        """Takes one more array, whose elements lie in C's order."""
        self.begin(name, array.dtype, array.shape)
        self.add_part(array)

    def begin(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        """Takes the name of an array whose rows come in parts."""
        self._seen.update(f"{name}:{dtype}:{shape};".encode())

    def add_part(self, rows: np.ndarray) -> None:
        """Takes the next rows of the array that was begun."""
        self._seen.update(rows.reshape(-1).view(np.uint8).data)

    def fingerprint(self) -> str:
        """Returns 16 hexadecimal digits that stand for all that were added."""
        return self._seen.hexdigest()[:16]


def file_fingerprint(where: PathLike) -> str:
    """Returns 16 hexadecimal digits that stand for the bytes of a file."""
    return hashlib.sha256(path(where).read_bytes()).hexdigest()[:16]
