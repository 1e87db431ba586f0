"""Jobs: one expert to train each, with its rows and its configuration.

The rows of an expert are visited in permutations that depend on its seed alone, so a step is a function of
its number: neither neighbours nor a kill and a resume change what an expert sees.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from elm_jax import names, storage
from elm_jax.data import ragged
from elm_jax.data.ragged import JoinedTokens, RaggedTokens
from elm_jax.data.token_losses import TokenizationReport
from elm_jax.errors import UserError
from elm_jax.models import flops
from elm_jax.models.expert_kinds import GATES
from elm_jax.models.flops import AttentionSpans
from elm_jax.records import Params, RowCounts
from elm_jax.training import config as configs
from elm_jax.training.config import TrainConfig

Tokens = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class ValidationRows:
    """Rows that an expert is validated on and not trained on.

    Attributes:
        prompts: tokens of each row.
        targets: tokens of each row.
        choices: tokens of each choice of each row. Without them no accuracy is known.
        labels: number of the right choice of each row.
    """

    prompts: Sequence[Tokens]
    targets: Sequence[Tokens]
    choices: Sequence[Sequence[Tokens]] | None = None
    labels: Sequence[int] | None = None


@dataclass(frozen=True)
class FrozenExpert:
    """An expert that is there, and stays as it is: gates are trained beside it, or training begins from it.

    Attributes:
        checksum: of its parameters.
        load: reads them.
    """

    checksum: str
    load: Callable[[], Params]

    def load_finite(self, job: str) -> Params:
        """Reads the parameters for a job.

        Raises:
            UserError: If some are not finite, for in a group they would reach what other experts compute.
        """
        params = self.load()
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
            raise UserError(
                f"Expected finite parameters of the expert that {job!r} begins with, got some that are not. "
                "Fix: train that expert again, or begin with another."
            )
        return params


@dataclass(frozen=True)
class TrainingJob:
    """One expert to train, or the gates of one.

    Attributes:
        id: of the expert.
        prompts: tokens of each row.
        targets: tokens of each row.
        config: how it is trained, with steps, batch size and learning rate resolved.
        validation: rows that it is validated on.
        datasets: that its rows are of.
        data: how its rows were read and rendered, as its recipe notes it.
        counts: what became of the rows that were read for it; None if that is not known.
        losses: what of their texts the model does not see; None if that is not known.
        frozen: the expert that gates are trained beside.
        start: the expert that training begins from. Default: a fresh one.
        wrong: tokens of each wrong choice of each row, if the loss reads them.
    """

    id: str
    prompts: Sequence[Tokens]
    targets: Sequence[Tokens]
    config: TrainConfig
    validation: ValidationRows | None = None
    datasets: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    counts: RowCounts | None = None
    losses: TokenizationReport | None = None
    frozen: FrozenExpert | None = None
    start: FrozenExpert | None = None
    wrong: Sequence[Sequence[Tokens]] | None = None

    @property
    def steps(self) -> int:
        """Steps of the expert."""
        return self.config.schedule.total_steps

    @property
    def batch_size(self) -> int:
        """Rows of a step."""
        assert self.config.batch.size is not None
        return self.config.batch.size

    @property
    def seed(self) -> int:
        """Of the fresh expert, of the order of its rows and of dropout."""
        return self.config.seed

    @property
    def recipe(self) -> dict[str, Any]:
        """What the library notes of how the expert was made."""
        return configs.recipe_of(self.config) | dict(self.data)


def require_trainable(jobs: Sequence[TrainingJob]) -> None:
    """Refuses jobs of one name or too long a name, without rows, or with rows that have no target."""
    for job in jobs:
        if (job.config.expert.kind == GATES) != (job.frozen is not None):
            raise UserError(
                f"Expected a kind of expert to train, got {job.config.expert.kind!r} for {job.id!r}. Fix: "
                "name a kind, or train gates of the library's experts with `elm train --gates`."
            )
        names.directory_name(job.id)  # raises if files could not be named by it
        if not len(job.prompts):
            raise UserError(
                f"Expected rows to train {job.id!r} on, got none. Fix: check its split and limit of rows."
            )
        if len(job.prompts) != len(job.targets):
            raise UserError(
                f"Expected a target for every prompt of {job.id!r}, got {len(job.targets)} targets for "
                f"{len(job.prompts)} prompts. Fix: give as many of both."
            )
        if job.batch_size < 1:
            raise UserError(
                f"Expected a batch of at least 1 row for {job.id!r}, got {job.batch_size}. "
                "Fix: set BATCH_SIZE."
            )
    twice = {job.id for job in jobs if sum(other.id == job.id for other in jobs) > 1}
    if twice:
        raise UserError(
            f"Expected experts of different names, got {sorted(twice)[0]!r} twice. Fix: name each task once."
        )


def rows_of_step(job: TrainingJob, step: int) -> Int[np.ndarray, " B"]:
    """Returns the numbers of the rows of a job's step, the first of which is 0."""
    return row_order(len(job.prompts), job.seed, step * job.batch_size, job.batch_size)


def row_order(rows: int, seed: int, start: int, count: int) -> Int[np.ndarray, " N"]:
    """Returns `count` row numbers from position `start` of an endless run of permutations, one an epoch.

    >>> sorted(row_order(4, seed=7, start=4, count=4).tolist())
    [0, 1, 2, 3]
    """
    epochs = range(start // rows, (start + count - 1) // rows + 1)
    first = start - epochs[0] * rows
    return np.concatenate([_permutation(rows, seed, epoch) for epoch in epochs])[first : first + count]


def token_counts(rows: Sequence[Tokens]) -> Int[np.ndarray, " N"]:
    """Returns how many tokens each row has."""
    if isinstance(rows, JoinedTokens):
        return np.concatenate([token_counts(part) for part in rows.parts])
    if isinstance(rows, RaggedTokens):
        return np.diff(rows.offsets).astype(np.int32)
    return np.fromiter(map(len, rows), np.int32, len(rows))


def attention_spans(jobs: Sequence[TrainingJob]) -> AttentionSpans:
    """Returns how many tokens a token of the jobs' rows attends to, on average."""
    prompts = np.concatenate([token_counts(job.prompts) for job in jobs])
    return flops.attention_spans(prompts, np.concatenate([token_counts(job.targets) for job in jobs]))


def resume_identity(job: TrainingJob) -> dict[str, Any]:
    """Returns what must be the same for a job to be resumed from a checkpoint.

    The rows are the hash of `storage.array_fingerprint` of all in one array, of which there may be too many.
    """
    digest = storage.ArrayDigest()
    named: list[tuple[str, Sequence[Tokens]]] = [("prompts", job.prompts), ("targets", job.targets)]
    if job.wrong is not None:
        named += [("wrong", [choice for choices in job.wrong for choice in choices])]
        digest.add("wrong/counts", np.array([len(choices) for choices in job.wrong], np.int64))
    for name, rows in named:
        if isinstance(rows, JoinedTokens):
            parts: Sequence[RaggedTokens] = rows.parts
        else:
            parts = (rows if isinstance(rows, RaggedTokens) else ragged.pack_tokens(rows),)
        digest.add(f"{name}/offsets", np.insert(np.cumsum(token_counts(rows), dtype=np.int64), 0, 0))
        digest.begin(f"{name}/tokens", np.dtype(np.int32), (sum(part.tokens.size for part in parts),))
        for part in parts:
            digest.add_part(part.tokens)
    given = {"expert": job.frozen, "start": job.start}
    checksums = {name: expert.checksum for name, expert in given.items() if expert is not None}
    return {"id": job.id, **configs.own_identity(job.config), "rows": digest.fingerprint(), **checksums}


# A job goes through an epoch step by step, and its neighbours with it.
@lru_cache(maxsize=256)
def _permutation(rows: int, seed: int, epoch: int) -> Int[np.ndarray, " N"]:
    return np.random.default_rng((seed, epoch)).permutation(rows).astype(np.int32)
