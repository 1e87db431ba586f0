"""The workspace: the directory of one run and its subdirectories."""

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from etils import epath

from elm_jax import locks, storage

DEFAULT_RUN = "elm_out"


@dataclass(frozen=True)
class Workspace:
    """The paths below a run's directory.

    Attributes:
        root: The directory.
        read_only: Whether opening the run writes nothing, as a dry run wants it; it need not exist then.
    """

    root: epath.Path
    read_only: bool = False

    @classmethod
    def open(cls, where: storage.PathLike = DEFAULT_RUN, *, create: bool = False) -> "Workspace":
        """Returns the workspace of a directory that exists, or that is made if `create` is true."""
        if create:
            return cls(storage.writable_directory(where))
        remedy = (
            "Make one with `elm init DIR --base PATH`, with `elm quickstart --out DIR`, or with a recipe "
            "that names a base as INITIAL_CHECKPOINT_PATH, or name another directory as --run (MODEL_DIR in "
            "a recipe)."
        )
        return cls(storage.existing_directory(where, what="A run's directory", remedy=remedy))

    @classmethod
    def at(cls, where: storage.PathLike, *, read_only: bool = False) -> "Workspace":
        """Returns the workspace of a directory that need not exist."""
        return cls(storage.path(where), read_only)

    @property
    def base(self) -> epath.Path:
        """The frozen base: configuration, parameters, tokenizer."""
        return self.root / "base"

    @property
    def library(self) -> epath.Path:
        """The trained experts."""
        return self.root / "library"

    @property
    def composites(self) -> epath.Path:
        """Merged and multitask experts, in a library of their own, so that no router finds them."""
        return self.root / "composites"

    @property
    def selections(self) -> epath.Path:
        """The experts that each router chose."""
        return self.root / "selections"

    @property
    def generated(self) -> epath.Path:
        """Generated answers, one file per task and expert."""
        return self.root / "generated"

    @property
    def scores(self) -> epath.Path:
        """Scores of rows, one file per task and expert."""
        return self.root / "scores"

    @property
    def checkpoints(self) -> epath.Path:
        """Checkpoints of trainings that have not ended."""
        return self.root / "checkpoints"

    @property
    def logs(self) -> epath.Path:
        """The journal of training, and what trackers write."""
        return self.root / "logs"

    @property
    def statistics(self) -> epath.Path:
        """What merging methods know of experts' training rows."""
        return self.root / "statistics"

    @property
    def prepared(self) -> epath.Path:
        """Rows that `elm prepare` rendered and tokenised, one file per task and split."""
        return self.root / "prepared"

    @property
    def report(self) -> epath.Path:
        """The latest report's files."""
        return self.root / "report"

    @property
    def reports(self) -> epath.Path:
        """Earlier reports, and those that were named, one directory each."""
        return self.root / "reports"

    @contextmanager
    def lock(self, verb: str, *, wait: bool = False) -> Generator[None, None, None]:
        """Keeps the directory to one process of a verb while the block runs.

        Args:
            verb: What this process does, such as "evaluate".
            wait: Whether to wait for another process that does it here.

        Raises:
            UserError: If another process does it here; it names that process.
        """
        seconds, fix = math.inf if wait else 0.0, "wait until it ends, or give --wait"
        with locks.hold(self.lock_file(verb), f"elm {verb}", seconds=seconds, fix=fix):
            self._remove_unfinished(self.lock_file(verb))
            yield

    def lock_file(self, verb: str) -> epath.Path:
        """Returns the file of the lock of a verb."""
        return self.root / f".{verb}.lock"

    def remove_leftovers(self) -> None:
        """Deletes the locks that killed commands left beside libraries, and the temporary files under them.

        What other processes hold and write stays as it is.
        """
        for directory in (self.root, self.library, self.composites, self.checkpoints):
            storage.remove_unfinished(directory, prefix=".probe-")
        for file in self._guarded():
            if file.exists():
                with locks.attempt(file, "elm") as held:
                    if held:
                        self._remove_unfinished(file)

    def _remove_unfinished(self, lock: epath.Path) -> None:
        """Deletes the temporary files of what a lock guards, which this process holds."""
        for place in self._guarded().get(lock, ()):
            if place.parent == self.root and place.suffix:
                storage.remove_unfinished(self.root, prefix=f".{place.name}.")
            else:
                storage.remove_unfinished(place, deep=True)

    def _guarded(self) -> dict[epath.Path, Sequence[epath.Path]]:
        """Returns locks, each with the directories, and files of the run's own, that are written under it."""
        evaluated = (self.scores, self.generated, self.report, self.reports)
        of_checkpoints = self.checkpoints.glob(".*.lock") if self.checkpoints.is_dir() else ()
        return {
            **{file: (self.checkpoints / file.name[1 : -len(".lock")],) for file in of_checkpoints},
            self.lock_file("evaluate"): (*evaluated, self.root / "choices.json", self.root / "seconds.json"),
            self.lock_file("index"): (self.root / "embedder.json",),
            self.lock_file("run"): (self.base,),
            self.lock_file("run.json"): (self.root / "run.json",),
            self.logs / ".train.lock": (self.logs,),
            self.prepared / ".lock": (self.prepared,),
            self.selections / ".lock": (self.selections,),
            self.statistics / ".lock": (self.statistics,),
        }
