"""Atomic directories: each is written, replaced and removed in one step, for any number of processes.

A directory exists once it holds its marker file. It is filled under a hidden name next to its target and
renamed when it is complete. A file system renames a directory only onto an empty one. So, to replace a
directory, the old one is first set aside, under a name where readers still find it. At every instant, also
after a writer was killed, a reader finds all of the old directory or all of the new one. This holds wherever
a rename is one step, as on a local disk or a network mount.

A bucket renames nothing: `versions` has the directories there. A directory that was copied from a disk to a
bucket, or back, is read as it is.
"""

import errno
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

from etils import epath

from elm_jax import buckets, locks, storage
from elm_jax.errors import UserError
from elm_jax.experts import versions

T = TypeVar("T")
LOCK_SECONDS = 600.0
"""For which a writer of a directory waits for another."""
ATTEMPTS = 100
"""How often a step is repeated if other processes interfere."""

_SET_ASIDE = re.compile(r"\.(.+)\.[0-9a-f]{32}\.old")
_UNFINISHED = re.compile(r"\.(.+)\.[0-9a-f]{32}\.tmp")


def list_complete(parent: epath.Path, marker: str) -> list[str]:
    """Returns the names of the complete directories in `parent`, sorted."""
    if buckets.is_bucket(parent):
        return versions.list_complete(parent, marker)
    found = set()
    for entry in versions.list_entries(parent):
        aside = _SET_ASIDE.fullmatch(entry.name)
        if aside or not entry.name.startswith("."):
            found.add(aside.group(1) if aside else entry.name)
    return sorted(name for name in found if locate(parent / name, marker) is not None)


def list_unfinished(parent: epath.Path, marker: str) -> list[tuple[str, epath.Path]]:
    """Returns what killed writers left in `parent`.

    Returns:
        For each, the name of its target and the directory that is left.
    """
    found = []
    for entry in list_directories(parent):
        hidden = _SET_ASIDE.fullmatch(entry.name) or _UNFINISHED.fullmatch(entry.name)
        if hidden:
            found.append((hidden.group(1), entry))
        elif not entry.name.startswith("."):
            whole = versions.find_current_version(entry, marker)
            if whole is None:
                found.append((entry.name, entry))
            found += [(entry.name, each) for each in versions.list_versions(entry) if whole and each != whole]
    return found


def list_directories(parent: epath.Path) -> list[epath.Path]:
    """Returns the directories in `parent`, sorted by name; none if it does not exist."""
    return [entry for entry in versions.list_entries(parent) if entry.is_dir()]


def locate(target: epath.Path, marker: str) -> epath.Path | None:
    """Returns where the directory is now, or None if there is none.

    It is at `target`, the version there that counts, or set aside while a writer replaces it (also if that
    writer was killed).
    """
    # A replacement between the two checks hides a directory from one round, hardly from three.
    for _ in range(3):
        whole = versions.find_current_version(target, marker)
        if whole is not None:
            return whole
        for aside in _list_set_aside(target):
            whole = versions.find_current_version(aside, marker)
            if whole is not None:
                return whole
    return None


def read(target: epath.Path, marker: str, reader: Callable[[epath.Path], T]) -> T:
    """Returns what `reader` reads from one consistent state of the directory.

    The marker's bytes must change whenever the rest does. If they differ after reading, somebody replaced the
    directory, and it is read again, also if `reader` raised an error.

    Args:
        target: The directory.
        marker: The name of its marker file.
        reader: Called with the place where the directory is at that moment.

    Raises:
        FileNotFoundError: If there is no such directory.
        UserError: If others never stop writing it.
    """
    for _ in range(ATTEMPTS):
        where = locate(target, marker)
        if where is None:
            raise FileNotFoundError(errno.ENOENT, "No such directory", str(target))
        before = _read_marker(where, marker)
        value, failure = None, None
        try:
            value = reader(where)
        except FileNotFoundError:
            continue
        except Exception as error:
            failure = error
        if before is not None and _read_marker(where, marker) == before:
            if failure is not None:
                raise failure
            return value  # pyright: ignore[reportReturnType]
    raise _busy_error(target)


def write(
    target: epath.Path, marker: str, fill: Callable[[epath.Path], None], *, replace: bool = False
) -> None:
    """Writes the directory completely or not at all.

    Args:
        target: The directory.
        marker: The name of its marker file, which `fill` writes.
        fill: Called with a temporary directory, into which it writes the content.
        replace: Whether a directory that exists is replaced.

    Raises:
        FileExistsError: If the directory exists and `replace` is False.
        UserError: If the system refuses, or others never stop writing it.
    """
    if not replace and locate(target, marker) is not None:
        raise FileExistsError(errno.EEXIST, "Directory exists", str(target))
    if buckets.is_bucket(target):
        versions.write(target, marker, fill, replace=replace)
        return
    old = list(_list_set_aside(target))  # left by killed writers; what is written now replaces them
    temporary = _temporary_path(target, "tmp")
    try:
        fill(temporary)
        old += _move_into_place(temporary, target, marker, replace)
    finally:
        versions.delete(temporary)
    for aside in old:
        _remove_at_once(aside, target)


def write_new(target: epath.Path, marker: str, fill: Callable[[epath.Path], None]) -> None:
    """Writes the directory as `write` does, if nothing or an empty directory is there.

    Raises:
        UserError: If there is anything else at `target`.
    """
    require_new(target)
    if buckets.is_bucket(target):
        with lock(target):
            versions.write_plain(target, marker, fill)
        return
    try:
        with lock(target):
            recover(target, marker)
            write(target, marker, fill)
    except FileExistsError:
        raise _exists_error(target) from None


def require_new(target: epath.Path) -> None:
    """Checks that nothing is at `target` but, at most, an empty directory.

    Raises:
        UserError: If anything is there.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise _exists_error(target)


def remove(target: epath.Path) -> None:
    """Deletes the directory; readers see all of it or nothing."""
    if buckets.is_bucket(target):
        versions.remove(target)
        return
    for where in (target, *_list_set_aside(target)):
        _remove_at_once(where, target)


def lock_file(target: epath.Path) -> epath.Path:
    """Returns the file of the lock of the directory, beside it."""
    return target.parent / f".{target.name}.lock"


def lock(target: epath.Path) -> AbstractContextManager[None]:
    """Returns a context that holds the directory against other writers; the next waits for the one before."""
    return locks.hold(lock_file(target), "a writer", seconds=LOCK_SECONDS)


def recover(target: epath.Path, marker: str) -> None:
    """Deletes what killed writers left of a directory, or puts back what they set aside if it is missing.

    Nobody may write the directory meanwhile.
    """
    if buckets.is_bucket(target):
        versions.recover(target, marker)
        return
    whole = [
        aside for aside in _list_set_aside(target) if versions.find_current_version(aside, marker) is not None
    ]
    if whole and not target.exists():
        whole[0].replace(target)
    if versions.find_current_version(target, marker) is not None:
        for aside in _list_set_aside(target):
            versions.delete(aside)
        storage.remove_unfinished(target)
    for entry in versions.list_entries(target.parent):
        unfinished = _UNFINISHED.fullmatch(entry.name)
        if unfinished and unfinished.group(1) == target.name:
            versions.delete(entry)


def _move_into_place(
    temporary: epath.Path, target: epath.Path, marker: str, replace: bool
) -> list[epath.Path]:
    """Renames a complete directory to its target; returns what was set aside for it."""
    moved = []
    for _ in range(ATTEMPTS):
        try:
            temporary.replace(target)
            return moved
        except OSError as error:
            # epath looks first and says IsADirectory, without a number; the system itself says NOTEMPTY.
            occupied = isinstance(error, IsADirectoryError) or error.errno in (errno.ENOTEMPTY, errno.EEXIST)
            if not occupied:
                raise UserError(
                    f"Expected to write the directory {target!s}, got {error.strerror or error}. Fix: remove "
                    "what is there, or choose another directory."
                ) from error
        if not replace and versions.find_current_version(target, marker) is not None:
            raise FileExistsError(errno.EEXIST, "Directory exists", str(target))
        aside = _temporary_path(target, "old")
        try:
            target.replace(aside)
        except FileNotFoundError:
            continue  # another writer moved it first
        moved.append(aside)
    raise _busy_error(target)


def _read_marker(where: epath.Path, marker: str) -> bytes | None:
    try:
        return storage.read_content(where / marker, what="A complete directory's file")
    except UserError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        return None  # another process took it away, and may have put another there since


def _list_set_aside(target: epath.Path) -> Iterator[epath.Path]:
    for entry in versions.list_entries(target.parent):
        aside = _SET_ASIDE.fullmatch(entry.name)
        if aside and aside.group(1) == target.name:
            yield entry


def _temporary_path(target: epath.Path, ending: str) -> epath.Path:
    return target.parent / f".{target.name}.{uuid.uuid4().hex}.{ending}"


def _remove_at_once(where: epath.Path, target: epath.Path) -> None:
    doomed = _temporary_path(target, "tmp")
    try:
        where.replace(doomed)
    except FileNotFoundError:
        return
    versions.delete(doomed)


def _busy_error(target: epath.Path) -> UserError:
    return UserError(
        f"Expected {target!s} to rest for a moment, got other processes that keep writing it. Fix: try again "
        "when they have finished."
    )


def _exists_error(target: epath.Path) -> UserError:
    return UserError(f"Expected a new directory at {str(target)!r}, got one in use. Fix: name another.")
