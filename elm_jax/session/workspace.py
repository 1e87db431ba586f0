"""The workspace: the directory of one run, what lies where in it, and a run opened on it."""

from collections.abc import Sequence
from dataclasses import dataclass

from etils import epath

from elm_jax import storage
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.telemetry.progress import Stages
from elm_jax.tokenizers.sentencepiece import Vocabulary
from elm_jax.weights.elm import Base

DEFAULT = "elm_out"


@dataclass(frozen=True)
class Workspace:
    """Places below one directory; `open` makes sure that it can be written."""

    root: epath.Path

    @classmethod
    def open(cls, where: storage.PathLike = DEFAULT, *, create: bool = False) -> "Workspace":
        """Returns the workspace at `where`; without `create` it must be there already."""
        if create:
            return cls(storage.writable_directory(where))
        remedy = (
            "Make one with `elm quickstart --out DIR`, or with a recipe that names a base as "
            "INITIAL_CHECKPOINT_PATH, or give the directory of another as --run (MODEL_DIR in a recipe)."
        )
        return cls(storage.existing_directory(where, what="A run's directory", remedy=remedy))

    @classmethod
    def at(cls, where: storage.PathLike) -> "Workspace":
        """Returns the workspace at `where`, be it there or not."""
        return cls(storage.path(where))

    @property
    def base(self) -> epath.Path:
        """The frozen base: configuration, parameters, vocabulary."""
        return self.root / "base"

    @property
    def library(self) -> epath.Path:
        """The trained experts."""
        return self.root / "library"

    @property
    def composites(self) -> epath.Path:
        """Experts over several tasks, merged or multitask; a library apart, so that no router finds them."""
        return self.root / "composites"

    @property
    def selections(self) -> epath.Path:
        """Which experts each router chose."""
        return self.root / "selections"

    @property
    def generated(self) -> epath.Path:
        """Written answers, one file a task and expert."""
        return self.root / "generated"

    @property
    def scores(self) -> epath.Path:
        """Per-row scores, one file a task and expert."""
        return self.root / "scores"

    @property
    def checkpoints(self) -> epath.Path:
        """Training under way."""
        return self.root / "checkpoints"

    def checkpoints_of(self, experts: Sequence[str]) -> epath.Path:
        """Returns where the checkpoints of experts are that train together, in whatever order."""
        return self.checkpoints / storage.fingerprint(sorted(experts))

    @property
    def logs(self) -> epath.Path:
        """What happened in training: the journal, and what trackers write."""
        return self.root / "logs"

    @property
    def prepared(self) -> epath.Path:
        """Rendered and tokenised rows, one file a task and split, where they were prepared beforehand."""
        return self.root / "prepared"

    @property
    def report(self) -> epath.Path:
        """The report's files."""
        return self.root / "report"


@dataclass(frozen=True)
class Run:
    """A workspace with its base at hand, and how the run reads data and shows its progress."""

    workspace: Workspace
    base: Base
    pieces: Vocabulary
    source: Source
    lengths: Lengths
    stages: Stages
    dtype: str | None = None  # that the base is held and computes in, where it is stored in another
