"""Directories of checkpoints: every configuration of a training has one, so that none is in another's way.

A directory belongs to the experts, their rows and all that the training is told to do with them. A command
that was corrected begins anew beside what it cannot use, which is named; the command as it was goes on from
there.
"""

import logging
import math
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from etils import epath

from elm_jax import buckets, locks, storage
from elm_jax.errors import UserError
from elm_jax.launch import hosts
from elm_jax.training.checkpoints import IDENTITY, CheckpointDirectory, CheckpointStore

_log = logging.getLogger(__name__)
Identity = Mapping[str, Any]


@contextmanager
def open_store(
    checkpoints: CheckpointDirectory | None, identity: Identity, *, restart: bool, wait: bool
) -> Generator[CheckpointStore, None, None]:
    """Opens the checkpoints of one configuration, which no other process may write meanwhile.

    Args:
        checkpoints: Where all configurations have theirs; None saves nothing.
        identity: What makes the configuration what it is.
        restart: Whether all checkpoints of these experts are deleted first.
        wait: Whether to wait for another process that trains the same.

    Raises:
        UserError: If another process trains the same.
    """
    if checkpoints is None:
        with CheckpointStore(None, identity) as store:
            yield store
        return
    with ExitStack() as stack:
        if hosts.is_primary():
            root = storage.writable_directory(checkpoints.path)
            own = find_directory(root, identity)
            seconds = math.inf if wait else 0.0
            fix = "wait until it ends, or give --wait"
            stack.enter_context(locks.hold(_lock_file(own), "elm train", seconds=seconds, fix=fix))
            storage.remove_unfinished(own, deep=True)
            claim_directory(root, identity, restart=restart)
        hosts.barrier("elm_jax checkpoints are claimed")
        directory = find_directory(checkpoints.path, identity)
        yield stack.enter_context(CheckpointStore(directory, identity))


def find_directory(root: storage.PathLike, identity: Identity) -> epath.Path:
    """Returns the directory of the checkpoints of one configuration; it need not exist.

    Args:
        root: The directory of all checkpoints.
        identity: What makes the configuration what it is.
    """
    where = storage.path(root)
    same = (each for each in _directories(where) if _is_same(_read_identity(each), identity))
    return next(same, where / storage.fingerprint(_fixed(identity)))


def claim_directory(root: storage.PathLike, identity: Identity, *, restart: bool = False) -> None:
    """Names other checkpoints of the same experts, and puts aside what is damaged and in the way.

    Args:
        root: The directory of all checkpoints.
        identity: What makes the configuration what it is.
        restart: Whether all checkpoints of these experts are deleted.
    """
    where, experts = storage.path(root), {job["id"] for job in identity["jobs"]}
    own = find_directory(where, identity)
    for directory in _directories(where):
        found = _read_identity(directory)
        if not found:
            if directory == own:
                _put_aside(directory)
            continue
        shared = experts & {job["id"] for job in found["jobs"]}
        empty = directory != own and not any(each.name.isdigit() for each in directory.iterdir())
        if shared and (restart or empty):
            lock = locks.attempt(_lock_file(directory), "elm train")
            with nullcontext(True) if directory == own else lock as held:
                if held:  # otherwise another process writes it now
                    directory.rmtree()
        elif shared and not _is_same(found, identity):
            _log.warning(
                "The checkpoint at %s has %s with another %s: it is left there, and this training begins "
                "anew. The command as it was goes on from it, --restart deletes it.",
                directory,
                sorted(shared)[0] if len(shared) == 1 else f"{len(shared)} of these experts",
                " and ".join(_differences(found, identity)),
            )


def delete_directory(root: storage.PathLike, identity: Identity) -> None:
    """Deletes the checkpoints of one configuration, which is done."""
    directory = find_directory(root, identity)
    if hosts.is_primary() and directory.exists():
        directory.rmtree()


def _lock_file(directory: epath.Path) -> epath.Path:
    return directory.parent / f".{directory.name}.lock"


def _put_aside(directory: epath.Path) -> None:
    count = len([each for each in _directories(directory.parent) if each.name.startswith(directory.name)])
    aside = directory.parent / f"{directory.name}.damaged-{count}"
    if buckets.is_bucket(directory):
        for file in storage.list_files(directory):
            storage.copy_file(file, aside / file.relative_to(directory))
        directory.rmtree()
    else:
        directory.replace(aside)
    _log.warning("The checkpoint at %s is damaged, and put aside as %s.", directory, aside.name)


def _directories(root: epath.Path) -> list[epath.Path]:
    entries = root.iterdir() if root.is_dir() else ()
    return sorted((each for each in entries if (each / IDENTITY).exists()), key=lambda each: each.name)


def _read_identity(directory: epath.Path) -> dict[str, Any]:
    """Returns whose checkpoints a directory has; nothing if that is damaged."""
    try:
        found = storage.read_json(directory / IDENTITY, what="A checkpoint's identity").get("run")
    except UserError:
        return {}
    jobs = found.get("jobs") if isinstance(found, dict) else None
    named = isinstance(jobs, list) and all(isinstance(job, dict) and "id" in job for job in jobs)
    return found if named and isinstance(found, dict) else {}


def _fixed(identity: Identity) -> dict[str, Any]:
    """Returns what does not differ each time."""
    return {name: value for name, value in identity.items() if not name.startswith("_")}


def _is_same(found: Identity, identity: Identity) -> bool:
    fixed = _fixed(identity)
    return all(name in found and found[name] == value for name, value in fixed.items())


def _differences(found: Identity, identity: Identity) -> list[str]:
    """Returns what differs, in words, such as "steps (20, now 30)"."""
    differing: dict[str, None] = {}
    before, now = ({job["id"]: job for job in each["jobs"]} for each in (found, identity))
    if list(before) != list(now):
        differing["set of experts"] = None
    for expert in before.keys() & now.keys():
        for key, value in now[expert].items():
            old = before[expert].get(key)
            if old != value:
                differing[key if key == "rows" else f"{key} ({_short(old)}, now {_short(value)})"] = None
    others = [name for name in _fixed(identity) if name != "jobs" and found.get(name) != identity[name]]
    return [*differing, *others]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:24]}…"
