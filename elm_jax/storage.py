"""Storage: files that are either whole or absent, local or in a bucket, and fingerprints of their content.

Every file is written under a temporary name and renamed, or put into its bucket in one go, has a format
number, and holds no pickle. JSON files have the number in `format`, safetensors files in their metadata.
"""

import hashlib
import io
import json
import math
import os
import re
import reprlib
import stat
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from safetensors.numpy import save as dump_safetensors

from elm_jax import buckets
from elm_jax.buckets import CHUNK_BYTES
from elm_jax.buckets import PathLike as PathLike  # what every room calls storage.PathLike
from elm_jax.errors import UserError
from elm_jax.names import lower_first
from elm_jax.safetensors_header import read_header

FORMAT = 1
MOST_TEXT = 1 << 28
"""Bytes of a file of JSON that is read; one of ours has far fewer."""
MAX_ROW_FILE_BYTES = 1 << 32
"""Bytes of a file of rows that is read."""
_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{32}\.tmp|\.probe-[0-9a-f]{32}")
_HERE = Path(__file__).parent
# The directory of the gin files: in a wheel inside the package, in a checkout beside it.
SHIPPED = next(root for root in (_HERE / "_recipes", _HERE.parent) if (root / "gin").is_dir())


def path(where: PathLike) -> epath.Path:
    """Returns a path that is local, `s3://` or `gs://`, with `~` expanded.

    Raises:
        UserError: If it is of another kind, or the package for its kind is not installed.
    """
    text = os.fspath(where)
    if isinstance(where, buckets.BucketPath) or (
        isinstance(where, epath.Path) and not text.startswith("~") and "://" not in text
    ):
        return where
    text = os.path.expanduser(text)
    if "://" in text:
        buckets.reach(text.partition("://")[0])
    return epath.Path(text)


def absolute(where: PathLike) -> epath.Path:
    """Returns a path that means the same wherever a process works."""
    return path(where) if buckets.is_bucket(where) else path(where).resolve()


def existing_directory(where: PathLike, *, what: str, remedy: str) -> epath.Path:
    """Returns a directory; raises if it is missing, naming `what` it should be and the `remedy`."""
    directory = path(where)
    try:
        is_there = directory.is_dir()
    except buckets.client_errors(where) as error:
        raise UserError(
            f"Expected {lower_first(what)} at {os.fspath(where)!r}, got an error of the bucket "
            f"({buckets.describe_error(error)}). Fix: check the address, the network and your credentials."
        ) from error
    if not is_there:
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
        if not buckets.is_bucket(directory):
            directory.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)  # or who tidies up was faster
    except buckets.client_errors(where) as error:
        raise UserError(
            f"Expected an output directory at {os.fspath(where)!r}, got one that cannot be written "
            f"({buckets.describe_error(error)}). Fix: choose another with the output flag, or free space "
            "there."
        ) from error
    return directory


def is_writable(where: PathLike) -> bool:
    """Tells whether a directory, or what it would be made in, can be written; nothing is written.

    A bucket is taken for writable.
    """
    if "://" in os.fspath(where):
        return True
    directory = Path(path(where)).absolute()
    return os.access(next(each for each in (directory, *directory.parents) if each.exists()), os.W_OK)


def require_writable(where: PathLike) -> None:
    """Raises what `writable_directory` does about a directory that cannot be written; nothing is written."""
    if not is_writable(where):
        raise UserError(
            f"Expected an output directory at {os.fspath(where)!r}, got one that cannot be written. Fix: "
            "choose another with the output flag, or ask for the right to write there."
        )


def write_bytes(where: PathLike, content: bytes) -> None:
    """Writes a file whole or not at all: a reader sees the old content or the new, never a part."""
    write_stream(where, [content])


def write_stream(where: PathLike, parts: Iterable[bytes]) -> None:
    """Writes a file whole or not at all, part by part."""
    target = path(where)
    if buckets.is_bucket(target):
        buckets.write_object(target, parts)
        return
    # A part of the name is enough, and all of it could be too long with what is added.
    temporary = target.parent / f".{target.name[:60]}.{uuid.uuid4().hex}.tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            for part in parts:
                stream.write(part)
        temporary.replace(target)
    except OSError as error:
        if temporary.exists():
            temporary.unlink()
        raise buckets.write_error(where, error) from error


def copy_file(source: PathLike, target: PathLike) -> None:
    """Copies a file, whole or not at all, also between a disk and a bucket."""
    with path(source).open("rb") as stream:
        write_stream(target, iter(lambda: stream.read(CHUNK_BYTES), b""))


def read_content(where: PathLike, *, what: str, most: int | None = None) -> bytes:
    """Returns the bytes of a file; `what` names it in errors.

    Args:
        where: The file.
        what: What it should be.
        most: How many bytes it may have; default: any number.

    Raises:
        UserError: If it is absent, cannot be read or is larger, or if it is no plain file: a pipe would let
            its reader wait, and a device may have no end.
    """
    file, found = path(where), None
    try:
        if "://" not in (text := os.fspath(file)):
            file = Path(text)  # in a fraction of epath's time
            about = os.stat(text)
            found = None if stat.S_ISREG(about.st_mode) else "no plain file"
            found = f"{about.st_size:,} bytes" if most is not None and about.st_size > most else found
        content = b"" if found else file.read_bytes()
    except FileNotFoundError as error:
        raise _missing(where, what) from error
    except OSError as error:
        content, found = b"", buckets.describe_error(error)
    except ValueError as error:  # a name that no file can have
        content, found = b"", str(error)
    except MemoryError:
        content, found = b"", "more bytes than there is memory"
    except Exception as error:
        if not buckets.is_bucket(where):
            raise
        content, found = b"", buckets.describe_error(error)
    if found:
        raise UserError(
            f"Expected {lower_first(what)} at {os.fspath(where)!r}, got {found}. Fix: replace it."
        )
    return content


def is_plain_file(where: PathLike) -> bool:
    """Returns whether a path is a file that ends: no pipe or device, for which a reader would wait."""
    return "://" in os.fspath(where) or stat.S_ISREG(os.stat(where).st_mode)


def file_size(where: PathLike) -> int:
    """Returns the bytes of a file, 0 if it is absent or no plain file."""
    file = path(where)
    if "://" not in (text := os.fspath(file)):  # epath's `stat` fails if the owner has no name
        try:
            about = os.stat(text)
        except OSError:
            return 0
        return about.st_size if stat.S_ISREG(about.st_mode) else 0
    if not file.exists():
        return 0
    with file.open("rb") as stream:
        return stream.seek(0, os.SEEK_END) or stream.tell()


def remove_unfinished(directory: PathLike, *, deep: bool = False, prefix: str = ".") -> None:
    """Deletes the files that killed writers left in a directory; nobody may write there meanwhile.

    Args:
        directory: Where to look; it need not exist.
        deep: Whether to look in all directories below, too.
        prefix: What their names begin with: ".NAME." are those that were to become NAME.
    """
    root = path(directory)
    if not root.is_dir():
        return
    for file in list_files(root) if deep else root.iterdir():
        if _UNFINISHED.fullmatch(file.name) and file.name.startswith(prefix) and not file.is_dir():
            file.unlink(missing_ok=True)


def list_files(directory: PathLike) -> list[epath.Path]:
    """Returns all files in a directory and those below it; none if it does not exist."""
    root = path(directory)
    if not buckets.is_bucket(root):
        return [parent / name for parent, _, names in root.walk() for name in names]
    import fsspec

    system, name = fsspec.url_to_fs(os.fspath(root))
    return [path(system.unstrip_protocol(each)) for each in system.find(name)]


def write_json(where: PathLike, value: Mapping[str, Any]) -> None:
    """Writes a JSON object with its format number."""
    text = json.dumps({"format": FORMAT, **value}, indent=2, ensure_ascii=False)
    write_bytes(where, (text + "\n").encode())


def read_json(where: PathLike, *, what: str) -> dict[str, Any]:
    """Reads a JSON object of our format; `what` names it in errors."""
    value = read_json_value(where, what=what, remedy="delete it and make it again")
    version = value.get("format") if isinstance(value, dict) else None
    if version != FORMAT:
        raise UserError(
            f"Expected {lower_first(what)} of format {FORMAT} at {os.fspath(where)!r}, got "
            f"{reprlib.repr(version)}. Fix: delete it and make it again."
        )
    return value


def read_json_value(where: PathLike, *, what: str, remedy: str = "download it again") -> Any:
    """Reads JSON of any form; `what` names the file in errors, which advise `remedy`."""
    content = read_content(where, what=what, most=MOST_TEXT)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"Expected JSON in {os.fspath(where)!r}, {lower_first(what)}, got a file that is not JSON "
            f"({error!s:.100}). Fix: {remedy}."
        ) from None


def write_jsonl(where: PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object per line."""
    write_bytes(where, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def read_jsonl(where: PathLike, *, what: str) -> list[Any]:
    """Reads one value of JSON per line; whether it is an object is for the reader to ask."""
    rows = []
    try:
        text = read_content(where, what=what, most=MAX_ROW_FILE_BYTES).decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"Expected {lower_first(what)} at {os.fspath(where)!r}, got bytes that are no UTF-8 ({error}). "
            "Fix: delete it and make it again."
        ) from None
    # Not `splitlines`, which also splits at separators that Unicode allows inside a string.
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"Expected {lower_first(what)} at {os.fspath(where)!r}, got a line {number} that is not JSON "
                f"({error}). Fix: delete the line."
            ) from None
    return rows


def write_sealed_lines(where: PathLike, header: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a header and one JSON object per line, with a checksum of all in the header."""
    body = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    sealed = {**header, "checksum": _seal(header, body)}
    write_bytes(where, json.dumps(sealed, ensure_ascii=False).encode() + b"\n" + body)


def read_sealed_lines(where: epath.Path) -> tuple[dict[str, Any] | None, bytes, bool | None]:
    """Reads what `write_sealed_lines` wrote.

    Returns:
        The header, None if it is no JSON object; the bytes of the rows; and whether both are as they were
        written, None if the header has no checksum to say so.

    Raises:
        UserError: As `read_content` does.
    """
    first, _, body = read_content(where, what="A file of results", most=MAX_ROW_FILE_BYTES).partition(b"\n")
    try:
        header = json.loads(first)
    except (ValueError, RecursionError):
        return None, body, False
    if not isinstance(header, dict):
        return None, body, False
    checksum = header.pop("checksum", None)
    return header, body, None if checksum is None else checksum == _seal(header, body)


def _seal(header: Mapping[str, Any], body: bytes) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    digest.update(body)
    return digest.hexdigest()[:16]


def write_arrays(
    where: PathLike, arrays: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes named arrays as safetensors."""
    plain = {name: np.asarray(value, order="C") for name, value in sorted(arrays.items())}
    write_bytes(where, dump_safetensors(plain, metadata={"format": str(FORMAT), **(metadata or {})}))


def read_arrays(where: PathLike, *, what: str, most: int | None = None) -> dict[str, np.ndarray]:
    """Reads named arrays from safetensors.

    Raises:
        UserError: If the file is absent, cut short or something else; `what` names it.
    """
    content = bytearray(
        read_content(where, what=what, most=most)
    )  # arrays are views of it that may be changed
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
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


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
    return hashlib.sha256(read_content(where, what="A file")).hexdigest()[:16]
