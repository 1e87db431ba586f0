"""Checkpoints: what a training run needs to go on after it was killed, kept with Orbax.

A directory belongs to one run: `identity.json` says which, and a run that differs is refused rather than
continued. Saves happen in the background; one that was cut short, or damaged since, is never restored: the
one before it is.
"""

from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from elm_jax import storage
from elm_jax.errors import UserError

STATE = "default"  # Orbax's name for the state in the directory of a step
FILES = "files.json"  # beside it: the size of every file of the state


class Store:
    """The checkpoints of one run; without a directory it keeps nothing."""

    def __init__(self, directory: storage.PathLike | None, identity: dict[str, Any]) -> None:
        self._manager: ocp.CheckpointManager | None = None
        if directory is None:
            return
        where = storage.writable_directory(directory).resolve()
        stamp = where / "identity.json"
        if stamp.exists():
            found = storage.read_json(stamp, what="A checkpoint's identity").get("run", {})
            differs = [name for name in identity if found.get(name) != identity[name]]
            if differs:
                raise UserError(
                    f"The checkpoints in {str(where)!r} belong to another run: what differs is its "
                    f"{' and its '.join(differs)}. Give this run a directory of its own, or delete that one."
                )
        else:
            storage.write_json(stamp, {"run": identity})
        # Orbax calls this when a save is written but not yet committed, so the list is in every whole step.
        listing = ocp.options.AsyncOptions(post_finalization_callback=lambda: _list_files(where))
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, create=False, cleanup_tmp_directories=True, async_options=listing
        )
        self._manager = ocp.CheckpointManager(str(where), options=options)

    def latest(self, state: Any) -> tuple[int, Any]:
        """Returns the newest whole step and its state, or 0 and the state given.

        Newer steps that lack a file or a part of one are deleted. One that is whole by its sizes and still
        cannot be read is a UserError.
        """
        if self._manager is None:
            return 0, state
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        for step in sorted(self._manager.all_steps(), reverse=True):
            directory = self._manager.directory / str(step)
            if not _is_whole(directory):
                # Left there, it would keep Orbax from saving this step again.
                self._manager.delete(step)
                continue
            try:
                return step, self._manager.restore(step, args=ocp.args.StandardRestore(like))
            except Exception as error:  # Orbax raises what its parts raise, bare `Exception` among them
                raise UserError(
                    f"A checkpoint is wanted at {str(directory)!r}, but it is damaged and cannot be read "
                    f"({type(error).__name__}). Delete it to go on from the one before."
                ) from error
        return 0, state

    def save(self, step: int, state: Any) -> None:
        """Copies the state and writes it in the background."""
        if self._manager is not None:
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def close(self) -> None:
        """Waits until what was saved is whole on disk."""
        if self._manager is not None:
            self._manager.wait_until_finished()
            self._manager.close()


def _list_files(where: epath.Path) -> None:
    """Lists the files of every step that has no list yet."""
    for directory in where.iterdir():
        if directory.is_dir() and not (directory / FILES).exists():
            storage.write_json(directory / FILES, {"sizes": _sizes(directory / STATE)})


def _is_whole(directory: epath.Path) -> bool:
    """Says whether every file of a step's state is there, as long as it was written."""
    try:
        wanted = storage.read_json(directory / FILES, what="A checkpoint's list of files")["sizes"]
    except UserError:
        return False
    return wanted.items() <= _sizes(directory / STATE).items()


def _sizes(directory: epath.Path) -> dict[str, int]:
    return {
        str((parent / name).relative_to(directory)): (parent / name).stat().length
        for parent, _, names in directory.walk()
        for name in names
    }
