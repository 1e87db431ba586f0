"""Training: many experts at once, from their rows to finished parameters, killed and resumed at will.

The rows of every expert are visited in permutations that depend on its seed alone, so a step is a function of
its number: a run that was killed goes on from its last checkpoint and ends with the same parameters.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elm_jax import storage
from elm_jax.axes import Array
from elm_jax.engine import checkpoints
from elm_jax.errors import UserError
from elm_jax.models import experts as ex
from elm_jax.models import paths
from elm_jax.models.sizes import T5Config
from elm_jax.records import Params
from elm_jax.tasks.prepared import pad
from elm_jax.training import optimizers, step

Tokens = Sequence[int] | np.ndarray
Progress = Callable[[int, float], None]  # steps done, mean loss in nats


@dataclass(frozen=True)
class Job:
    """One expert to train: its rows, and how long and how fast."""

    id: str
    prompts: Sequence[Tokens]
    targets: Sequence[Tokens]
    steps: int
    rate: float
    seed: int = 0


@dataclass(frozen=True)
class Plan:
    """What the experts of a group share."""

    kind: str
    batch_size: int
    options: Mapping[str, Any] = field(default_factory=dict)  # of a fresh expert, by kind
    optimizer: str = "adamw"
    schedule: str = "linear"
    warmup: int = 0
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    save_every: int = 200


def row_order(rows: int, seed: int, start: int, count: int) -> np.ndarray:
    """Returns `count` row numbers from place `start` of an endless run of permutations, one an epoch.

    >>> sorted(row_order(4, seed=7, start=4, count=4).tolist())
    [0, 1, 2, 3]
    """
    epochs = range(start // rows, (start + count - 1) // rows + 1)
    run = np.concatenate([np.random.default_rng((seed, epoch)).permutation(rows) for epoch in epochs])
    first = start - epochs[0] * rows
    return run[first : first + count]


def train_group(
    config: T5Config,
    base: Params,
    jobs: Sequence[Job],
    plan: Plan,
    *,
    checkpoint_dir: storage.PathLike | None = None,
    progress: Progress | None = None,
) -> list[Params]:
    """Trains the jobs' experts together and returns their parameters, in the order of the jobs.

    With a `checkpoint_dir` the state is saved every `plan.save_every` steps, and a call with the same jobs
    and plan goes on from the last save. A job without rows, or a checkpoint of other jobs, is a UserError.
    """
    for job in jobs:
        if not len(job.prompts):
            raise UserError(f"Rows to train {job.id!r} on are wanted, but it has none.")
        if len(job.prompts) != len(job.targets):
            raise UserError(
                f"A target for every prompt of {job.id!r} is wanted, but {len(job.targets)} came for "
                f"{len(job.prompts)}."
            )
    optimizer = optimizers.optimizer(plan.optimizer)
    shape = (
        max(len(row) for job in jobs for row in job.prompts),
        max(len(row) for job in jobs for row in job.targets),
    )
    run = step.compiled(
        config, plan.kind, optimizer, z_loss=plan.z_loss, label_smoothing=plan.label_smoothing
    )
    state = step.start(
        step.stack([ex.init(plan.kind, jax.random.key(job.seed), base, **plan.options) for job in jobs]),
        optimizer,
    )
    last = max(job.steps for job in jobs)
    identity = _identity(config, base, jobs, plan) if checkpoint_dir is not None else {}
    with closing(checkpoints.Store(checkpoint_dir, identity)) as store:
        done, state = store.latest(state)
        while done < last:
            state, loss = run(state, base, _batch(jobs, plan, shape, done))
            done += 1
            if progress and (done % 10 == 0 or done == last):
                progress(done, float(jnp.mean(loss)))
            if done % plan.save_every == 0 and done < last:
                store.save(done, state)
    return [jax.tree.map(np.asarray, step.unstack(state.params, place)) for place in range(len(jobs))]


def fresh(base: Params, plan: Plan, seeds: Sequence[int]) -> Params:
    """Returns fresh experts [E, …], each a function of its own seed alone."""

    def one(seed: Array, params: Params) -> Params:
        return ex.init(plan.kind, jax.random.key(seed), params, **plan.options)

    return jax.jit(jax.vmap(one, in_axes=(0, None)))(np.asarray(seeds, np.uint32), base)


def _batch(jobs: Sequence[Job], plan: Plan, shape: tuple[int, int], done: int) -> step.GroupBatch:
    """Assembles the rows of one step, a pure function of its number."""
    rate = optimizers.schedule(plan.schedule)
    prompts, targets = [], []
    for job in jobs:
        rows = row_order(len(job.prompts), job.seed, done * plan.batch_size, plan.batch_size).tolist()
        prompts.append(pad([np.asarray(job.prompts[row]) for row in rows], shape[0]))
        targets.append(pad([np.asarray(job.targets[row]) for row in rows], shape[1]))
    seeds = np.array([job.seed for job in jobs], np.int32)
    return step.GroupBatch(
        prompts=np.stack(prompts),
        targets=np.stack(targets),
        rate=np.array([rate(done, job.steps, job.rate, plan.warmup) for job in jobs], np.float32),
        dropout=step.dropout_keys(seeds, np.full(len(jobs), done, np.int32)),
        active=np.array([done < job.steps for job in jobs]),
    )


def _identity(config: T5Config, base: Params, jobs: Sequence[Job], plan: Plan) -> dict[str, Any]:
    """What must be the same for a checkpoint to be gone on from."""

    def of(job: Job) -> dict[str, Any]:
        rows = [np.asarray(row) for row in (*job.prompts, *job.targets)]
        told = {"tokens": np.concatenate(rows), "lengths": np.array([len(row) for row in rows])}
        return {"id": job.id, "steps": job.steps, "rate": job.rate, "seed": job.seed} | {
            "rows": storage.array_fingerprint(told)
        }

    return {
        "network": storage.fingerprint(vars(config)),
        "base": storage.array_fingerprint(paths.flatten(base)),
        "plan": storage.fingerprint(vars(plan)),
        "jobs": [of(job) for job in jobs],
    }
