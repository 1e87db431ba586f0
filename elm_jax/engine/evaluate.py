"""Evaluation: the scores of many rows, batched by length whatever tasks and experts they belong to."""

from collections.abc import Callable, Sequence

import numpy as np

from elm_jax.axes import Array
from elm_jax.models.sizes import T5Config
from elm_jax.records import Params
from elm_jax.scoring import buckets, likelihood

Progress = Callable[[int, int], None]  # rows done, rows in all


def score_rows(
    config: T5Config,
    params: Params,
    rows: Sequence[buckets.Row],
    experts: Params | None = None,
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> list[np.ndarray]:
    """Returns, in the order of the rows, the score in nats of each of a row's choices.

    `experts` is a stack [E, …] that every row's `expert` indexes, or None for the base alone. The next batch
    is assembled while the device works on the last one.
    """
    run = likelihood.compiled(config)
    scores: list[np.ndarray] = [np.zeros(0)] * len(rows)
    waiting: tuple[np.ndarray, Array] | None = None
    done = 0

    def collect(positions: np.ndarray, batch_scores: Array) -> int:
        for position, row_scores in zip(positions, np.asarray(batch_scores), strict=True):
            if position >= 0:
                scores[position] = row_scores[: len(rows[position].answers)]
        return int((positions >= 0).sum())

    for batch in buckets.batches(rows, batch_size=batch_size):
        index = batch.expert_of_row if experts is not None else None
        pending = run(params, batch.prompts, batch.answers, batch.choice_mask, experts, index)
        if waiting is not None:
            done += collect(*waiting)
            if progress:
                progress(done, len(rows))
        waiting = (np.asarray(batch.rows), pending)
    if waiting is not None:
        done += collect(*waiting)
        if progress:
            progress(done, len(rows))
    return scores
