"""The open run: a workspace with its base in memory, and how it reads data."""

from dataclasses import dataclass

import elm_jax  # its `Library` lies above, and is imported when it is asked for
from elm_jax.session.run_directory import DEFAULT_RUN, Workspace
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.telemetry.progress import Stages
from elm_jax.tokenizers.sentencepiece import Tokenizer
from elm_jax.weights.base_model import Base

__all__ = ["DEFAULT_RUN", "Run", "Workspace"]


@dataclass(frozen=True, repr=False)
class Run:
    """An open run: its directory, its base in memory, and how it reads data.

    Attributes:
        workspace: The run's directory.
        base: The frozen base.
        tokenizer: The base's tokenizer.
        source: Where rows and templates come from.
        lengths: Tokens of inputs and of targets that are kept.
        stages: Shows progress.
        dtype: What the base is held and computes in; None if that is what it is stored in.
    """

    workspace: Workspace
    base: Base
    tokenizer: Tokenizer
    source: Source
    lengths: Lengths
    stages: Stages
    dtype: str | None = None

    @property
    def library(self) -> "elm_jax.Library":
        """The run's experts, a mapping from their ids."""
        return elm_jax.Library(self)

    def __repr__(self) -> str:
        return f"Run({str(self.workspace.root)!r}, base={self.base.fingerprint!r}, dtype={self.dtype!r})"
