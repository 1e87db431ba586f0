"""Storage: files that are either whole or absent, local or in a bucket, and fingerprints of their content.

Every file is written under a temporary name and renamed, has a format number, and holds no pickle. JSON files
have the number in `format`, safetensors files in their metadata.
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
from elm_jax.names import lower_first
from elm_jax.safetensors_header import read_header

FORMAT = 1
PathLike = str | os.PathLike[str]
_HERE = Path(__file__).parent
# The directory of the gin files: in a wheel inside the package, in a checkout beside it.
SHIPPED = next(root for root in (_HERE / "_recipes", _HERE.parent) if (root / "gin").is_dir())


def path(where: PathLike) -> epath.Path:
    """Returns a path that is local, `gs://` or of any other kind that etils knows, with `~` expanded."""
    return epath.Path(os.path.expanduser(os.fspath(where)))


def existing_directory(where: PathLike, *, what: str, remedy: str) -> epath.Path:
    """Returns a directory; raises if it is missing, naming `what` it should be and the `remedy`."""
    directory = path(where)
    if not directory.is_dir():
        raise UserError(
            f"Expected {lower_first(what)} at {os.fspath(where)!r}, got no directory. Fix: "
            f"{lower_first(remedy)}"
        )
    return directory


def writable_directory(where: PathLike) -> epath.Path:
    """Returns a directory, made if need be; raises if nothing can be written there."""
    directory = path(where)
    probe = directory / f".probe-{uuid.uuid4().hex}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"Expected an output directory at {os.fspath(where)!r}, got one that cannot be written "
            f"({error.strerror or error}). Fix: choose another with the output flag, or free space there."
        ) from error
    return directory


def write_bytes(where: PathLike, content: bytes) -> None:
    """Writes a file whole or not at all: a reader sees the old content or the new, never a part."""
    write_stream(where, [content])


def write_stream(where: PathLike, parts: Iterable[bytes]) -> None:
    """Writes a file whole or not at all, part by part."""
    target = path(where)
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex}.tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            for part in parts:
                stream.write(part)
        temporary.replace(target)
    except OSError as error:
        if temporary.exists():
            temporary.unlink()
        raise UserError(
            f"Expected to write {os.fspath(where)!r}, got {error.strerror or error}. Fix: free space there, "
            "or choose another output directory."
        ) from error


def write_json(where: PathLike, value: Mapping[str, Any]) -> None:
    """Writes a JSON object with its format number."""
    text = json.dumps({"format": FORMAT, **value}, indent=2, ensure_ascii=False)
    write_bytes(where, (text + "\n").encode())


def read_json(where: PathLike, *, what: str) -> dict[str, Any]:
    """Reads a JSON object of our format; `what` names it in errors."""
    try:
        value = json.loads(path(where).read_text())
    except FileNotFoundError:
        raise _missing(where, what) from None
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(
            f"Expected {lower_first(what)} at {os.fspath(where)!r}, got a file that is not JSON ({error}). "
            "Fix: delete it and make it again."
        ) from None
    version = value.get("format") if isinstance(value, dict) else None
    if version != FORMAT:
        raise UserError(
            f"Expected {lower_first(what)} of format {FORMAT} at {os.fspath(where)!r}, got {version!r}. Fix: "
            "delete it and make it again."
        )
    return value


def write_jsonl(where: PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object per line."""
    write_bytes(where, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def read_jsonl(where: PathLike, *, what: str) -> list[dict[str, Any]]:
    """Reads one JSON object per line."""
    rows = []
    try:
        text = path(where).read_text()
    except FileNotFoundError:
        raise _missing(where, what) from None
    # Not `splitlines`, which also splits at separators that Unicode allows inside a string.
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise UserError(
                f"Expected {lower_first(what)} at {os.fspath(where)!r}, got a line {number} that is not JSON "
                f"({error}). Fix: delete the line."
            ) from None
    return rows


def read_first_line(where: epath.Path) -> dict[str, Any] | None:
    """Returns the first line of a file of JSON lines; None if it is no JSON object."""
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
        raise _missing(where, what) from None
    try:
        header = read_header(io.BytesIO(content), file=os.fspath(where), fix="write it again")
    except UserError as error:
        raise UserError(f"{what}: {error}") from None
    return {
        name: np.frombuffer(content, entry.dtype, math.prod(entry.shape), entry.start).reshape(entry.shape)
        for name, entry in header.tensors.items()
    }


def _missing(where: PathLike, what: str) -> UserError:
    return UserError(
        f"Expected {lower_first(what)} at {os.fspath(where)!r}, got no file. Fix: correct the path, or make "
        "it."
    )


def fingerprint(value: Any) -> str:
    """Returns 16 hexadecimal digits of a JSON-like value's hash, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def array_fingerprint(arrays: Mapping[str, Any]) -> str:
    """Returns 16 hexadecimal digits of the hash of named arrays: names, shapes, types and bytes."""
    digest = ArrayDigest()
    for name, value in sorted(arrays.items()):
        digest.add(name, np.asarray(value, order="C"))
    return digest.fingerprint()


class ArrayDigest:
    """Computes `array_fingerprint` of arrays that are added one by one, in the order of their names."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, name: str, array: np.ndarray) -> None:
        """Adds an array, whose elements are in C order."""
        self.begin(name, array.dtype, array.shape)
        self.add_part(array)

    def begin(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        """Begins an array whose rows are added in parts."""
        self._hash.update(f"{name}:{dtype}:{shape};".encode())

    def add_part(self, rows: np.ndarray) -> None:
        """Adds the next rows of the array that was begun."""
        self._hash.update(rows.reshape(-1).view(np.uint8).data)

    def fingerprint(self) -> str:
        """Returns 16 hexadecimal digits of the hash of all arrays that were added."""
        return self._hash.hexdigest()[:16]


def file_fingerprint(where: PathLike) -> str:
    """Returns 16 hexadecimal digits of the hash of a file's bytes."""
    return hashlib.sha256(path(where).read_bytes()).hexdigest()[:16]
