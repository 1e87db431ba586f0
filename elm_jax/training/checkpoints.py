"""Checkpoints: what a training run needs to be resumed after it was killed, saved with Orbax.

A directory belongs to one run, as `identity.json` says; `checkpoint_directories` finds it. Saves happen in
the background; one that was cut short, or damaged since, is never restored: the one before it is. On several
hosts all of them save their part, into a directory that all of them see.

Orbax writes to disks and to `gs://`. One process saves into any bucket: Orbax writes to a temporary
directory, and each step is copied from there when it is written, its list of files last.
"""

import gc
import logging
import shutil
import sys
import tempfile
import zlib
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from elm_jax import buckets, storage
from elm_jax.errors import UserError

STATE = "state"
POSITION = "position"
FILES = "files.json"  # in the directory of a step: size and checksum of every file of the two
IDENTITY = "identity.json"
SPARE_BYTES = 1 << 20
"""That a save takes beside the state."""
_CHUNK = 1 << 24
_KEPT = 2  # steps
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointDirectory:
    """Where runs are saved, each configuration in a directory of its own.

    Attributes:
        path: the directory of all of them.
        identity: what must be the same in a run that is resumed, beside its network, plan and jobs.
    """

    path: storage.PathLike
    identity: Mapping[str, Any] = field(default_factory=dict)


class CheckpointStore:
    """The checkpoints of one run; without a directory nothing is saved."""

    def __init__(self, directory: storage.PathLike | None, identity: Mapping[str, Any]) -> None:
        self.identity: dict[str, Any] = dict(identity)
        self._manager: ocp.CheckpointManager | None = None
        self._quiet = ExitStack()
        self._where = where = storage.absolute(directory or ".")
        self._is_copied = False  # from and to a temporary directory, in which Orbax works
        if directory is None:
            return
        if jax.process_index() == 0:
            storage.writable_directory(where)
            self.identity = _claim(where, identity)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("elm_jax checkpoints are open")
            self.identity = _claim(where, identity)
        self._quiet.enter_context(_silence_failed_save())
        if buckets.is_bucket(where) and jax.process_count() == 1:
            where = storage.path(self._quiet.enter_context(tempfile.TemporaryDirectory()))
            self._is_copied = True
        elif buckets.is_bucket(where) and not str(where).startswith("gs://"):
            raise UserError(
                f"Expected checkpoints of several processes on a disk that all of them see, or in gs://, got "
                f"{str(where)!r}. Fix: name such a directory, or train with one process."
            )
        # Orbax calls this when a save is written but not yet committed, so the list is in every whole step.
        listing = ocp.options.AsyncOptions(post_finalization_callback=lambda: self._finish(where))
        options = ocp.CheckpointManagerOptions(
            max_to_keep=_KEPT, create=False, cleanup_tmp_directories=True, async_options=listing
        )
        self._manager = ocp.CheckpointManager(str(where), options=options)

    def position(self) -> tuple[int, dict[str, Any]] | None:
        """Returns the newest whole step and what was noted with it; None if there is none.

        Newer steps that lack a file or a part of one are deleted.
        """
        if self._manager is None:
            return None
        for step in sorted(self._steps(), reverse=True):
            if self._is_copied and step not in self._manager.all_steps():
                _copy(self._where / str(step), self._directory(step))
                self._manager.reload()
            if _is_whole(self._directory(step)):
                restored = self._restore(step, POSITION, ocp.args.JsonRestore())
                return step, restored
            _log.warning("The checkpoint at %s is damaged, and deleted.", self._where / str(step))
            # Left there, it would keep Orbax from saving this step again.
            self._manager.delete(step)
            if self._is_copied:
                (self._where / str(step)).rmtree(missing_ok=True)
        return None

    def restore(self, step: int, like: Any) -> Any:
        """Returns the state of a step, laid out on devices as `like` is; damage is a UserError."""

        def struct(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

        return self._restore(step, STATE, ocp.args.StandardRestore(jax.tree.map(struct, like)))

    def save(self, step: int, state: Any, position: Mapping[str, Any]) -> None:
        """Copies the state and writes it in the background; an error of the last save is raised now."""
        if self._manager is None or step in self._manager.all_steps():
            return
        _require_space(self._manager.directory, state)
        args = {STATE: ocp.args.StandardSave(state), POSITION: ocp.args.JsonSave(dict(position))}
        try:
            self._manager.save(step, args=ocp.args.Composite(**args))
        except Exception as error:  # Orbax raises what its parts raise, bare `Exception` among them
            raise self._write_error(error) from error

    def close(self) -> None:
        """Waits until what was saved is whole on disk."""
        if self._manager is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._write_error(error) from error
        finally:
            self._manager.close()
            self._quiet.close()

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self.close()
        except UserError:
            if error is None:
                raise

    def _directory(self, step: int) -> epath.Path:
        assert self._manager is not None
        return self._manager.directory / str(step)

    def _steps(self) -> list[int]:
        """Returns the steps that were saved, whole or damaged."""
        assert self._manager is not None
        if not self._is_copied:
            return list(self._manager.all_steps())
        return [int(each.name) for each in self._where.iterdir() if each.name.isdigit()]

    def _finish(self, written: epath.Path) -> None:
        """Lists the files of the steps that are written, and copies them to where they belong."""
        _list_files(written)
        if not self._is_copied:
            return
        for directory in written.iterdir():
            step = directory.name.partition(".")[0]  # the rest of the name is Orbax's
            if step.isdigit() and not (self._where / step / FILES).exists():
                _copy(directory, self._where / step)
        for step in sorted(self._steps())[:-_KEPT]:
            (self._where / str(step)).rmtree(missing_ok=True)

    def _restore(self, step: int, item: str, args: Any) -> Any:
        assert self._manager is not None
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**{item: args}))[item]
        except Exception as error:
            raise UserError(
                f"Expected a whole checkpoint at {str(self._where / str(step))!r}, got one that does not "
                f"read ({type(error).__name__}). Fix: delete it to resume from the one before."
            ) from error

    def _write_error(self, error: Exception) -> UserError:
        text = " ".join(str(error).split()) or type(error).__name__
        reason = text if len(text) < 160 else f"… {text[-160:]}"  # the system's own words come last
        return UserError(
            f"Expected to write a checkpoint to {str(self._where)!r}, got an error ({reason}). "
            "Fix: free space or choose another directory, and run the same command; earlier checkpoints and "
            "finished experts are as they were."
        )


def _require_space(where: epath.Path, state: Any) -> None:
    """Refuses to begin a save that a full disk would cut short, in threads that tell at length of it."""
    if "://" in str(where):
        return
    leaves = [leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)]
    size = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards)
    needed, free = size + size // 8 + SPARE_BYTES, shutil.disk_usage(where).free
    if free < needed:
        raise UserError(
            f"Expected {needed / 1e6:,.0f} MB for a checkpoint at {str(where)!r}, got {free / 1e6:,.0f} MB "
            "that are free. Fix: free space or choose another directory, and run the same command; earlier "
            "checkpoints and finished experts are as they were."
        )


@contextmanager
def _silence_failed_save() -> Generator[None, None, None]:
    """Keeps what the threads of a failed save say of it off standard error: we say it in a sentence."""

    def show(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if not (kind is RuntimeError and "Event loop is closed" in str(error)):
            before(kind, error, trace)

    def is_other(record: logging.LogRecord) -> bool:
        return not ("exception was never retrieved" in record.getMessage() or "orbax" in record.pathname)

    before, sys.excepthook = sys.excepthook, show
    loggers = [logging.getLogger(name) for name in ("asyncio", "absl")]
    for logger in loggers:
        logger.addFilter(is_other)
    try:
        yield
    finally:
        gc.collect()  # what was never retrieved is told of when it is collected
        for logger in loggers:
            logger.removeFilter(is_other)
        sys.excepthook = before


def _claim(where: epath.Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Notes whose checkpoints a directory has; refuses those of another run. Returns what was noted first.

    Names that begin with an underscore may differ each time; the first note of them counts.
    """
    file = where / IDENTITY
    if not file.exists():
        storage.write_json(file, {"run": dict(identity)})
        return dict(identity)
    noted = storage.read_json(file, what="A checkpoint's identity").get("run")
    noted = noted if isinstance(noted, dict) else {}
    fixed = [name for name in identity if not name.startswith("_")]
    differing = [name for name in fixed if noted.get(name) != identity[name]]
    if differing:
        raise UserError(
            f"Expected checkpoints of this run in {str(where)!r}, got those of another, which differs in its "
            f"{' and '.join(differing)}. Fix: give this run a directory of its own, or delete that one."
        )
    return noted


def _list_files(where: epath.Path) -> None:
    """Lists the files of every step that has no list yet."""
    if jax.process_index():
        return
    for directory in where.iterdir():
        if directory.is_dir() and not (directory / FILES).exists():
            storage.write_json(directory / FILES, {"files": _files(directory)})


def _copy(source: epath.Path, target: epath.Path) -> None:
    """Copies a step, its list of files last: a step without it is not whole."""
    for file in sorted(storage.list_files(source), key=lambda file: file.name == FILES):
        storage.copy_file(file, target / file.relative_to(source))


def _is_whole(directory: epath.Path) -> bool:
    """Tells whether every file of a step's state is there, and as it was written."""
    try:
        expected = storage.read_json(directory / FILES, what="A checkpoint's list of files").get("files")
    except UserError:
        return False
    return isinstance(expected, dict) and expected.items() <= _files(directory).items()


def _files(directory: epath.Path) -> dict[str, str]:
    """Returns the size and checksum of every file, because disks and copies may flip bits."""
    return {
        str(file.relative_to(directory)): _checksum(file)
        for item in (STATE, POSITION)
        for file in storage.list_files(directory / item)
        if storage.is_plain_file(file)
    }


def _checksum(file: epath.Path) -> str:
    checksum = 0
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return f"{file.stat().length} {checksum:08x}"
