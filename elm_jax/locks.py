"""Locks: one process at a time writes a thing, and the others learn who does.

On a disk, the system holds a lock for a process and frees it when that ends, however it ends. In a bucket,
and on a file system without such locks, a lock is an object that its holder rewrites now and then; one that
nobody has rewritten for `EXPIRY_SECONDS` is free. A bucket makes an object for the first alone of those who
ask for one that is not there, so that a lock has one taker. The lock of a dead holder is deleted by who made
its claim, an object beside it.

The file of a lock says who holds it. It is deleted when the lock is released; a killed process leaves it, and
the next one takes and deletes it.
"""

import contextlib
import errno
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Generator
from datetime import UTC, datetime
from typing import Any

from etils import epath

from elm_jax import buckets, storage
from elm_jax.errors import UserError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

EXPIRY_SECONDS = 120.0
"""Of a lock in a bucket, since its holder last wrote it."""
SETTLE_SECONDS = 1.0
"""In which a process that took a free lock of a disk at the same time would have written it, too."""
POLL_SECONDS = 0.1
MAX_OWNER_BYTES = 4096
"""Of the file of a lock."""
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def hold(
    where: storage.PathLike, purpose: str, *, seconds: float = 0.0, fix: str = "wait until it ends"
) -> Generator[None, None, None]:
    """Holds a lock while the block runs.

    Args:
        where: The lock's file, whose directory is made if need be.
        purpose: What this process does meanwhile, such as "elm train".
        seconds: How long to wait for another process that holds it; `math.inf` waits until it ends.
        fix: What the user can do if another process holds it.

    Raises:
        UserError: If another process holds the lock; it names that process.
    """
    file = storage.path(where)
    try:
        with _acquire(file, _owner(purpose), seconds, fix):
            yield
    except _LockFileError as error:
        raise UserError(
            f"Expected to write {str(file)!r}, got {error.reason}. Fix: free space there, or choose another "
            "output directory."
        ) from error


@contextlib.contextmanager
def attempt(where: storage.PathLike, purpose: str) -> Generator[bool, None, None]:
    """Holds a lock while the block runs if it is free, and tells whether it is held.

    Args:
        where: The lock's file.
        purpose: What this process does meanwhile.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_acquire(storage.path(where), _owner(purpose), 0.0, ""))
            held = True
        except (UserError, _LockFileError):
            held = False
        yield held


class _LockFileError(Exception):
    """The file of a lock could not be written."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.reason = error.strerror or str(error)


@contextlib.contextmanager
def _acquire(
    file: epath.Path, owner: dict[str, Any], seconds: float, fix: str
) -> Generator[None, None, None]:
    until, told = time.monotonic() + seconds, False
    while True:
        try:
            if not buckets.is_bucket(file):
                file.parent.mkdir(parents=True, exist_ok=True)
            release = _try_file(file, owner) if _has_system_locks(file) else _try_object(file, owner)
        except OSError as error:
            raise _LockFileError(error) from error
        if release is not None:
            break
        by = _describe(_read_owner(file))
        if time.monotonic() >= until:
            raise UserError(f"Expected {str(file.parent)!r} to itself, got {by} at work there. Fix: {fix}.")
        if not told and seconds == float("inf"):
            print(f"elm: waiting for {by}.", file=sys.stderr)
            told = True
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        release()


def _has_system_locks(file: epath.Path) -> bool:
    return fcntl is not None and not buckets.is_bucket(file)


def _try_file(file: epath.Path, owner: dict[str, Any]) -> Any:
    """Takes a lock of the system; returns what releases it, or None if another has it."""
    assert fcntl is not None
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in _NO_LOCKS:
                return _try_object(file, owner)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return None
            raise
        # Whoever had it may have deleted the file meanwhile: then this is the lock of no name.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                break
        os.close(descriptor)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(owner).encode())
    except OSError as error:
        # A full disk keeps nobody from holding a lock, and from deleting something.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            os.close(descriptor)
            raise

    def release() -> None:
        with contextlib.suppress(OSError):
            os.unlink(file)
        os.close(descriptor)

    return release


def _try_object(file: epath.Path, owner: dict[str, Any]) -> Any:
    """Takes a lock that its holder rewrites; returns what releases it, or None if another has it."""
    if _is_alive(_read_owner(file)):
        return None
    mine = {**owner, "token": uuid.uuid4().hex}

    def content() -> bytes:
        return json.dumps({**mine, "alive": time.time()}).encode()

    def is_mine() -> bool:
        return _read_owner(file).get("token") == mine["token"]

    if not buckets.is_bucket(file):
        storage.write_bytes(file, content())
        time.sleep(SETTLE_SECONDS)
        if not is_mine():
            return None
    else:
        if file.exists():
            _delete_dead(file, content())
        if not buckets.create_object(file, content()):
            return None
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(EXPIRY_SECONDS / 4):
            with contextlib.suppress(Exception):  # a bucket may be out of reach for a while
                if not is_mine():  # it was out of reach for so long that another took the lock
                    return
                storage.write_bytes(file, content())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()

    def release() -> None:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError):
            if is_mine():
                file.unlink()

    return release


def _delete_dead(file: epath.Path, content: bytes) -> None:
    """Deletes the lock of a dead holder in a bucket, unless another process does or did."""
    claim = file.parent / f"{file.name}.claim"
    if not buckets.create_object(claim, content):
        if not _is_alive(_read_owner(claim)):  # of a process that was killed here
            claim.unlink(missing_ok=True)
        return
    if not _is_alive(_read_owner(file)):  # nobody took it before the claim was made
        file.unlink(missing_ok=True)
    claim.unlink(missing_ok=True)


def _is_alive(owner: dict[str, Any]) -> bool:
    alive = owner.get("alive")
    return isinstance(alive, int | float) and time.time() - alive < EXPIRY_SECONDS


def _owner(purpose: str) -> dict[str, Any]:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "purpose": purpose, "since": since}


def _read_owner(file: epath.Path) -> dict[str, Any]:
    """Returns what a lock says of its holder; nothing if it says nothing, or not yet."""
    try:
        owner = json.loads(storage.read_content(file, what="A lock", most=MAX_OWNER_BYTES))
    except (UserError, ValueError, RecursionError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _describe(owner: dict[str, Any]) -> str:
    def text(name: str) -> str:
        return "".join(filter(str.isprintable, str(owner.get(name, "?"))))[:80]

    if not owner:
        return "another process"
    return f"{text('purpose')} (process {text('pid')} on {text('host')}, since {text('since')})"
