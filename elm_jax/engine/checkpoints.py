"""Checkpoints: what a training run needs to go on after it was killed, kept with Orbax.

A directory belongs to one run: `identity.json` says which, and a run that differs is refused rather than
continued. Saves happen in the background; one that was cut short is never restored.
"""

from typing import Any

import jax
import orbax.checkpoint as ocp

from elm_jax import storage
from elm_jax.errors import UserError


class Store:
    """The checkpoints of one run; without a directory it keeps nothing."""

    def __init__(self, directory: storage.PathLike | None, identity: dict[str, Any]) -> None:
        self._manager: ocp.CheckpointManager | None = None
        if directory is None:
            return
        where = storage.writable_directory(directory)
        stamp = where / "identity.json"
        if stamp.exists():
            found = storage.read_json(stamp, what="A checkpoint's identity")["run"]
            differs = [name for name in identity if found.get(name) != identity[name]]
            if differs:
                raise UserError(
                    f"The checkpoints in {str(where)!r} belong to a run with another {' and '.join(differs)}. "
                    "Give this run a directory of its own, or delete that one."
                )
        else:
            storage.write_json(stamp, {"run": identity})
        options = ocp.CheckpointManagerOptions(max_to_keep=2, create=False)
        self._manager = ocp.CheckpointManager(str(where.resolve()), options=options)

    def latest(self, state: Any) -> tuple[int, Any]:
        """Returns the newest step and its state, or 0 and the state given."""
        if self._manager is None or (newest := self._manager.latest_step()) is None:
            return 0, state
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        return newest, self._manager.restore(newest, args=ocp.args.StandardRestore(like))

    def save(self, step: int, state: Any) -> None:
        """Copies the state and writes it in the background."""
        if self._manager is not None:
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def close(self) -> None:
        """Waits until what was saved is whole on disk."""
        if self._manager is not None:
            self._manager.wait_until_finished()
            self._manager.close()
