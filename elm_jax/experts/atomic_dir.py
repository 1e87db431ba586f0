"""Swap: directories that come, change and go in one step, however many processes read and write them.

A directory counts as there once it holds its marker file. It is filled under a hidden name beside its home
and renamed when it is whole. To replace one, the old is first moved aside, under a name where readers still
find it, for a file system renames a directory onto nothing but an empty one. So at every instant, also after
a writer was killed, a reader finds all of the old or all of the new. This holds wherever directories are
renamed in one step, as on a local disk or a network mount.
"""

import errno
import re
import uuid
from collections.abc import Callable, Iterator
from typing import TypeVar

from etils import epath

from elm_jax.errors import UserError

T = TypeVar("T")
ATTEMPTS = 100
"""How often a step is tried again when another process came between."""

_ASIDE = re.compile(r"\.(.+)\.[0-9a-f]{32}\.old")
_UNFINISHED = re.compile(r"\.(.+)\.[0-9a-f]{32}\.tmp")


def list_complete(parent: epath.Path, marker: str) -> list[str]:
    """Returns the names of the whole directories in `parent`, sorted."""
    found = set()
    for entry in _list_entries(parent):
        aside = _ASIDE.fullmatch(entry.name)
        if aside or not entry.name.startswith("."):
            found.add(aside.group(1) if aside else entry.name)
    return sorted(name for name in found if locate(parent / name, marker) is not None)


def list_unfinished(parent: epath.Path, marker: str) -> list[tuple[str, epath.Path]]:
    """Returns what writers that did not finish left in `parent`: the names they wrote to, and the remains."""
    found = []
    for entry in list_directories(parent):
        hidden = _ASIDE.fullmatch(entry.name) or _UNFINISHED.fullmatch(entry.name)
        if hidden:
            found.append((hidden.group(1), entry))
        elif not entry.name.startswith(".") and not (entry / marker).exists():
            found.append((entry.name, entry))
    return found


def list_directories(parent: epath.Path) -> list[epath.Path]:
    """Returns the directories in `parent` by name; none if it is not there."""
    return [entry for entry in _list_entries(parent) if entry.is_dir()]


def locate(home: epath.Path, marker: str) -> epath.Path | None:
    """Returns where the directory lies now: at home, or aside while (or since) a writer stopped half-way."""
    # A swap between a look at home and a look aside hides a directory from one round, hardly from three.
    for _ in range(3):
        if (home / marker).exists():
            return home
        for aside in _list_set_aside(home):
            if (aside / marker).exists():
                return aside
    return None


def read(home: epath.Path, marker: str, reader: Callable[[epath.Path], T]) -> T:
    """Returns what `reader` makes of the directory; all it read belongs together.

    The marker's bytes must change whenever the rest does: if they are the same before and after, nobody came
    between; else the reading is done again. What the reader raises counts only in the first case.

    Raises FileNotFoundError if there is no such directory, and a UserError if others never stop writing it.
    """
    for _ in range(ATTEMPTS):
        where = locate(home, marker)
        if where is None:
            raise FileNotFoundError(errno.ENOENT, "No such directory", str(home))
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
    raise _busy_error(home)


def write(
    home: epath.Path, marker: str, fill: Callable[[epath.Path], None], *, replace: bool = False
) -> None:
    """Makes the directory with what `fill` writes into the one it is given, whole or not at all.

    Raises FileExistsError if it is there already and `replace` was not asked for, and a UserError if the
    system refuses or others never stop writing it.
    """
    if not replace and locate(home, marker) is not None:
        raise FileExistsError(errno.EEXIST, "Directory exists", str(home))
    old = list(_list_set_aside(home))  # a killed writer's: what is written now takes their place
    temporary = _temporary_path(home, "tmp")
    try:
        fill(temporary)
        old += _move_into_place(temporary, home, marker, replace)
    finally:
        _delete(temporary)
    for aside in old:
        _remove_at_once(aside, home)


def remove(home: epath.Path) -> None:
    """Deletes the directory; readers see all of it or nothing."""
    for where in (home, *_list_set_aside(home)):
        _remove_at_once(where, home)


def _move_into_place(temporary: epath.Path, home: epath.Path, marker: str, replace: bool) -> list[epath.Path]:
    """Brings a whole directory home; returns what had to be moved aside for it."""
    moved = []
    for _ in range(ATTEMPTS):
        try:
            temporary.replace(home)
            return moved
        except OSError as error:
            # epath looks first and says IsADirectory, without a number; the system itself says NOTEMPTY.
            occupied = isinstance(error, IsADirectoryError) or error.errno in (errno.ENOTEMPTY, errno.EEXIST)
            if not occupied:
                raise UserError(
                    f"{home!s} was to be written, but the system refused ({error.strerror or error}). "
                    "Free that place, or choose another directory."
                ) from error
        if not replace and (home / marker).exists():
            raise FileExistsError(errno.EEXIST, "Directory exists", str(home))
        aside = _temporary_path(home, "old")
        try:
            home.replace(aside)
        except FileNotFoundError:
            continue  # another writer moved it first
        moved.append(aside)
    raise _busy_error(home)


def _read_marker(where: epath.Path, marker: str) -> bytes | None:
    try:
        return (where / marker).read_bytes()
    except FileNotFoundError:
        return None


def _list_entries(parent: epath.Path) -> list[epath.Path]:
    # Without asking what each one is: a directory that is renamed between the two would be none.
    try:
        return sorted(parent.iterdir(), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _list_set_aside(home: epath.Path) -> Iterator[epath.Path]:
    for entry in _list_entries(home.parent):
        aside = _ASIDE.fullmatch(entry.name)
        if aside and aside.group(1) == home.name:
            yield entry


def _temporary_path(home: epath.Path, ending: str) -> epath.Path:
    return home.parent / f".{home.name}.{uuid.uuid4().hex}.{ending}"


def _remove_at_once(where: epath.Path, home: epath.Path) -> None:
    doomed = _temporary_path(home, "tmp")
    try:
        where.replace(doomed)
    except FileNotFoundError:
        return
    _delete(doomed)


def _delete(directory: epath.Path) -> None:
    if directory.exists():
        directory.rmtree()


def _busy_error(home: epath.Path) -> UserError:
    return UserError(
        f"{home!s} was to be read or written alone for a moment, but others kept writing it. "
        "Try again when they have finished."
    )
