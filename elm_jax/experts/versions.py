"""Versions: directories in a bucket, each written, replaced and removed in one step.

A bucket renames nothing. So each writing makes a version of its own, a directory below the target that nobody
changes, and one small object, the pointer, names the version that counts and is written last:

    <target>/current.json  expert-0123…/expert.json …

A directory without a pointer that holds its marker file was copied from a disk, and counts as it is.
"""

import errno
import json
import re
import tempfile
import uuid
from collections.abc import Callable
from pathlib import PurePath

from etils import epath

from elm_jax import buckets, storage
from elm_jax.errors import UserError

POINTER_FILE = "current.json"
"""The object that names the version that counts."""
_VERSION = re.compile(r"[^/]+-[0-9a-f]{32}")


def find_current_version(target: epath.Path, marker: str) -> epath.Path | None:
    """Returns the version of a directory that counts, or the directory itself if it is a whole one.

    Args:
        target: A directory, in a bucket or on a disk.
        marker: The name of its marker file.

    Returns:
        The place of the marker file; None if nothing is whole.
    """
    pointer, named = target / POINTER_FILE, None
    if buckets.is_bucket(target) or pointer.exists():
        try:
            named = storage.read_json(pointer, what="The name of a version").get("directory")
        except UserError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
    if named is None:
        return target if (target / marker).exists() else None
    if not isinstance(named, str) or not _VERSION.fullmatch(named):
        raise UserError(
            f"Expected the name of a version in {str(pointer)!r}, got {named!r:.99}. Fix: delete it, and "
            "write the directory again."
        )
    return target / named if (target / named / marker).exists() else None


def list_complete(parent: epath.Path, marker: str) -> list[str]:
    """Returns the names of the complete directories in a bucket's, sorted; three requests are enough."""
    plain, versions = (set(parent.glob(f"{stars}/{marker}")) for stars in ("*", "*/*"))
    pointed = {file.parent for file in parent.glob(f"*/{POINTER_FILE}")}
    whole = {file.parent for file in plain} | (pointed & {file.parent.parent for file in versions})
    return sorted(target.name for target in whole if not target.name.startswith("."))


def list_versions(target: epath.Path) -> list[epath.Path]:
    """Returns all versions of a directory, sorted by name."""
    return [entry for entry in list_entries(target) if _VERSION.fullmatch(entry.name)]


def write(target: epath.Path, marker: str, fill: Callable[[epath.Path], None], *, replace: bool) -> None:
    """Writes a version of a directory, then the pointer to it, and deletes what was there before.

    Args:
        target: The directory, in a bucket.
        marker: The name of its marker file, which `fill` writes.
        fill: Called with the version's directory, into which it writes the content.
        replace: Whether a directory that exists is replaced.

    Raises:
        FileExistsError: If another process wrote the directory meanwhile and `replace` is False.
    """
    # What other processes write from now on is not ours to delete.
    before = [entry for entry in list_entries(target) if entry.name != POINTER_FILE]
    version = target / f"{PurePath(marker).stem}-{uuid.uuid4().hex}"
    try:
        fill(version)
        pointer = json.dumps({"format": storage.FORMAT, "directory": version.name}).encode()
        if replace:
            storage.write_bytes(target / POINTER_FILE, pointer)
        elif not buckets.create_object(target / POINTER_FILE, pointer):
            raise FileExistsError(errno.EEXIST, "Directory exists", str(target))
    except BaseException:
        delete(version)
        raise
    for entry in before:
        delete(entry)


def write_plain(target: epath.Path, marker: str, fill: Callable[[epath.Path], None]) -> None:
    """Writes a directory without versions, for other programs: made on a disk, and copied, its marker last.

    Args:
        target: The directory, in a bucket.
        marker: The name of its marker, a file or a directory.
        fill: Called with a temporary directory, into which it writes the content.
    """
    with tempfile.TemporaryDirectory() as temporary:
        made = storage.path(temporary) / target.name
        fill(made)
        for file in sorted(storage.list_files(made), key=lambda file: made / marker in (file, *file.parents)):
            storage.copy_file(file, target / file.relative_to(made))


def remove(target: epath.Path) -> None:
    """Deletes a directory in a bucket: what says that it is there, then the rest."""
    (target / POINTER_FILE).unlink(missing_ok=True)
    # A copy from a disk has its marker at the top.
    for entry in sorted(list_entries(target), key=lambda entry: entry.suffix != ".json"):
        delete(entry)


def recover(target: epath.Path, marker: str) -> None:
    """Deletes what killed writers left of a directory in a bucket, which nobody may write meanwhile."""
    whole = find_current_version(target, marker)
    for entry in list_entries(target):
        if whole is None or (whole != target and entry not in (whole, target / POINTER_FILE)):
            delete(entry)


def list_entries(parent: epath.Path) -> list[epath.Path]:
    """Returns what is in a directory, sorted by name; nothing if it does not exist."""
    # Without `is_dir`: a directory that is renamed between the two calls would be missed.
    try:
        return sorted(parent.iterdir(), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def delete(entry: epath.Path) -> None:
    """Deletes a file, or a directory with all in it, if it is there."""
    if entry.is_dir():
        entry.rmtree(missing_ok=True)
    else:
        entry.unlink(missing_ok=True)
