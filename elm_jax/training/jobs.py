"""Jobs: one expert to train each, with its rows, and how long and how fast.

The rows of an expert are visited in permutations that depend on its seed alone, so a step is a function of
its number: neither neighbours nor a kill and a resume change what an expert sees.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Int

from elm_jax import storage
from elm_jax.data import ragged
from elm_jax.data.ragged import RaggedTokens
from elm_jax.errors import UserError

Tokens = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Held:
    """Rows that an expert is judged on and not trained on; with choices its accuracy is told too."""

    prompts: Sequence[Tokens]
    targets: Sequence[Tokens]
    choices: Sequence[Sequence[Tokens]] | None = None  # of every row
    labels: Sequence[int] | None = None  # which choice is right


@dataclass(frozen=True)
class Job:
    """One expert to train: its rows, and how long and how fast."""

    id: str
    prompts: Sequence[Tokens]
    targets: Sequence[Tokens]
    steps: int
    rate: float
    seed: int = 0
    batch_size: int = 8  # rows of a step
    schedule: str = "linear"
    warmup: int = 0
    held: Held | None = None


def require_trainable(jobs: Sequence[Job]) -> None:
    """Refuses jobs of one name, without rows, or with rows that have no target."""
    for job in jobs:
        if not len(job.prompts):
            raise UserError(f"Rows to train {job.id!r} on are wanted, but it has none.")
        if len(job.prompts) != len(job.targets):
            raise UserError(
                f"A target for every prompt of {job.id!r} is wanted, but {len(job.targets)} came for "
                f"{len(job.prompts)}."
            )
        if job.batch_size < 1:
            raise UserError(f"A batch of at least 1 row is wanted for {job.id!r}; {job.batch_size} came.")
    twice = {job.id for job in jobs if sum(other.id == job.id for other in jobs) > 1}
    if twice:
        raise UserError(f"Experts of different names are wanted, but {sorted(twice)[0]!r} came twice.")


def rows_of_step(job: Job, step: int) -> Int[np.ndarray, " B"]:
    """Returns the numbers of the rows of a job's step, the first of which is 0."""
    return row_order(len(job.prompts), job.seed, step * job.batch_size, job.batch_size)


def row_order(rows: int, seed: int, start: int, count: int) -> Int[np.ndarray, " N"]:
    """Returns `count` row numbers from place `start` of an endless run of permutations, one an epoch.

    >>> sorted(row_order(4, seed=7, start=4, count=4).tolist())
    [0, 1, 2, 3]
    """
    epochs = range(start // rows, (start + count - 1) // rows + 1)
    first = start - epochs[0] * rows
    return np.concatenate([_permutation(rows, seed, epoch) for epoch in epochs])[first : first + count]


def lengths(tokens: Sequence[Tokens]) -> Int[np.ndarray, " N"]:
    """Returns how many tokens each row has."""
    if isinstance(tokens, RaggedTokens):
        return np.diff(tokens.offsets).astype(np.int32)
    return np.fromiter(map(len, tokens), np.int32, len(tokens))


def identity(job: Job) -> dict[str, Any]:
    """Returns what stands for a job: it must be the same for a checkpoint to be gone on from."""
    told = {name: value for name, value in vars(job).items() if name not in ("prompts", "targets", "held")}
    return told | {"rows": storage.array_fingerprint(_flat(prompts=job.prompts, targets=job.targets))}


def _flat(**rows: Iterable[Tokens]) -> dict[str, np.ndarray]:
    found = {}
    for name, tokens in rows.items():
        laid = tokens if isinstance(tokens, RaggedTokens) else ragged.pack_tokens(tokens)
        found |= {f"{name}/tokens": laid.tokens, f"{name}/offsets": laid.offsets}
    return found


# A job goes through an epoch step by step, and its neighbours with it.
@lru_cache(maxsize=256)
def _permutation(rows: int, seed: int, epoch: int) -> Int[np.ndarray, " N"]:
    return np.random.default_rng((seed, epoch)).permutation(rows).astype(np.int32)
