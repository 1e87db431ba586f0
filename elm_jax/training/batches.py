"""Batches: examples of all experts of a group, packed into rows of one shape.

Every expert offers the examples of its step that no batch has had yet. A batch takes what fits, of those who
have most to do first, and fills its rows with whatever else goes in. So little of it is padding, whatever
lengths and batch sizes the experts have, and one program serves all of them. What an expert sees in a step
stays as it is drawn, wherever it stands and whoever stands beside it.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from elm_jax.models.sizes import T5Config
from elm_jax.training import jobs, step
from elm_jax.training.jobs import Job

STEP = 8  # lengths are multiples of it
MOST_SEGMENTS = 8  # in a row; every one of them costs its part of an adapter's products for all
WELL_FILLED = 0.93  # of a batch that is real; on a CPU what has less is much the worse for it
EMPTY, SHARED = -1, -2  # what a row belongs to, if not to the expert at a place
TRIED = 24  # batches that a shape is tried on
FOLDED = (1, 2, 4)  # rows whose targets stand in one


class BatchCost(NamedTuple):
    """What a batch costs beside its tokens' products, by which its shape is chosen.

    Attributes:
        attention: of a token that attends to another, as a part of what a token costs itself.
        overhead: tokens of each device that a batch costs beside its own: parameters are read, kernels
            gathered, and experts moved.
        strictness: the power to which a share of real tokens below `WELL_FILLED` counts.
    """

    attention: float = 0.0
    overhead: int = 256
    strictness: int = 4


UNKNOWN = BatchCost()
"""Where nothing is known of the network: tokens cost what they cost."""


class Shape(NamedTuple):
    """Rows of a batch, tokens of their prompts and of their targets, and segments of each at most.

    The targets of so many rows as `folded` stand in one row of targets: an outlier finds room there beside
    short ones, and not every row has to be as wide as it.
    """

    rows: int
    prompt: int
    target: int
    segments: int
    folded: int = 1

    @property
    def tokens(self) -> int:
        """How many are computed, padding among them."""
        return self.rows * self.prompt + self.rows // self.folded * self.target


@dataclass(frozen=True, eq=False)
class Known:
    """A job and the lengths of all of its rows."""

    job: Job
    prompt: np.ndarray
    target: np.ndarray


@dataclass(frozen=True)
class Offer:
    """An example that waits for a batch."""

    place: int
    at: int  # which of the step's rows
    row: int  # of the job's
    prompt: int  # tokens
    target: int
    share: float  # 1 / the target tokens of the expert's step
    seed: int  # what dropout in it is drawn from


@dataclass(frozen=True)
class Batch:
    """What stands in the rows of a batch."""

    shape: Shape
    rows: tuple[tuple[Offer, ...], ...]

    @property
    def taken(self) -> list[Offer]:
        """All that is in it, row by row."""
        return [offer for row in self.rows for offer in row]


def known(job: Job) -> Known:
    """Returns a job with the lengths of its rows."""
    return Known(job, jobs.lengths(job.prompts), jobs.lengths(job.targets))


def held(job: Job) -> Known | None:
    """Returns the rows that a job is judged on as a job of their own; None where it has none."""
    if job.held is None:
        return None
    return known(replace(job, prompts=job.held.prompts, targets=job.held.targets))


def of_step(found: Known, place: int, done: int) -> list[Offer]:
    """Returns the examples of one step of a job, whose expert stands at a place and has done so many."""
    rows = jobs.rows_of_step(found.job, done)
    return _offers(found, place, rows, step.seeds(found.job.seed, done, len(rows)))


def of_all(found: Known, place: int) -> list[Offer]:
    """Returns all rows of a job as the examples of one step, in their own order."""
    return _offers(found, place, np.arange(len(found.prompt)), np.zeros(len(found.prompt), np.uint32))


def _offers(found: Known, place: int, rows: np.ndarray, seeds: np.ndarray) -> list[Offer]:
    prompt, target = found.prompt[rows], found.target[rows]
    share = 1 / max(int(target.sum()), 1)
    told = zip(rows.tolist(), prompt.tolist(), target.tolist(), seeds.tolist(), strict=True)
    return [Offer(place, at, row, s, t, share, seed) for at, (row, s, t, seed) in enumerate(told)]


def pack(
    offered: Sequence[Sequence[Offer]],
    shape: Shape,
    *,
    places: int,
    parts: int = 1,
    alone: frozenset[int] = frozenset(),
) -> Batch:
    """Returns the next batch; `offered` has what each expert offers, those with most to do first.

    Those at places that are `alone` share no row: what is not finite spreads in a row, and no further.

    On a mesh whose `expert` axis has several parts each has its own `places / parts` experts, and its own
    rows of every batch: one part's after another's.
    """
    own: list[list[Sequence[Offer]]] = [[] for _ in range(parts)]
    for offers in offered:
        if offers:
            own[offers[0].place // (places // parts)].append(offers)
    each = shape._replace(rows=shape.rows // parts)
    return Batch(shape, tuple(row for mine in own for row in _packed(mine, each, alone)))


def _packed(
    offered: Sequence[Sequence[Offer]], shape: Shape, alone: frozenset[int]
) -> list[tuple[Offer, ...]]:
    """Fills rows with the best fit, the longest first, of twice as many examples as there is room for."""
    room = 2 * shape.rows * shape.prompt
    chosen: list[Offer] = []
    for offers in offered:
        chosen += offers
        room -= sum(offer.prompt for offer in offers)
        if room < 0:
            break
    order = {place: number for number, place in enumerate(dict.fromkeys(offer.place for offer in chosen))}
    # Those of the first expert come before all, so that no example waits for ever.
    chosen.sort(key=lambda offer: (order[offer.place] > 0, -offer.prompt, order[offer.place], offer.at))
    rows: list[list[Offer]] = [[] for _ in range(shape.rows)]
    left = np.tile(np.array([[shape.prompt, shape.segments]]), (shape.rows, 1))
    # Of the row of targets that every row's are in, and of who is alone with them.
    beside = np.arange(shape.rows) // shape.folded
    targets = np.full(shape.rows // shape.folded, shape.target)
    owner = np.full(len(targets), EMPTY)
    for offer in chosen:
        takes = np.array([offer.prompt, 1])
        own = offer.place if offer.place in alone else SHARED
        free = (targets >= offer.target) & ((owner == EMPTY) | (owner == own))
        fits = np.flatnonzero((left >= takes[None]).all(axis=1) & free[beside])
        if fits.size:
            best = int(fits[left[fits, 0].argmin()])
            rows[best].append(offer)
            left[best] -= takes
            targets[beside[best]] -= offer.target
            owner[beside[best]] = own
    return [tuple(row) for row in rows]


def shape_for(
    given: Sequence[Known],
    batch_tokens: int,
    *,
    places: int,
    parts: int = 1,
    multiple: int = 1,
    cost: BatchCost = UNKNOWN,
) -> Shape:
    """Returns the shape that batches of these jobs are best packed into, tried on their first steps.

    A batch has `batch_tokens` at most, unless one row a device has more, and a `multiple` of rows: of the
    devices that split them. It is one that is filled well, and of those the one that costs least for a real
    token, by `cost`.
    """
    every = [*given, *(own for each in given if (own := held(each.job)))]
    longest = max(int(each.prompt.max()) for each in every)
    widest = max(int(each.target.max()) for each in every)
    prompt = float(np.mean([each.prompt.mean() for each in given]))
    target = float(np.mean([each.target.mean() for each in given]))
    offered = int(sum(each.prompt.mean() * each.job.batch_size for each in given[:places]))
    tried = []
    for stretch in (1.0, 1.25, 1.5, 2.0):
        length = _up(longest * stretch)
        segments = min(MOST_SEGMENTS, math.ceil(1.3 * length / prompt))
        for slack, folded in itertools.product((1.15, 1.6), FOLDED):
            fitting = slack * target * length / prompt
            answer = _up(max(widest, fitting * folded))
            if folded > 1 and fitting * folded / 2 >= widest:
                continue  # folded half as far, rows are wide enough for the widest already
            needed, row, least = -(-offered // length), length + answer / folded, multiple * folded
            if tried and least * row > batch_tokens:
                continue
            most = min(int(batch_tokens // row), needed + needed // 4 + 1)
            for rows in {max(1, most // by // least) * least for by in (1, 2, 4, 8)}:
                shape = Shape(rows, length, answer, segments, folded)
                share = filled(given[:places], shape, places, parts)
                spent = shape.tokens * (1 + cost.attention * length) + cost.overhead * multiple
                worth = share * shape.tokens / spent
                tried.append((worth * min(1.0, share / WELL_FILLED) ** cost.strictness, shape))
    return max(tried)[-1]


def batch_cost(network: T5Config, kind: str, platform: str) -> BatchCost:
    """Returns what batches of experts of a kind cost on a platform.

    Attention is counted in products, times what softmax, dropout and computing both again for the gradient
    add to these. On two CPU cores rows of 512 tokens took 1.37 times as long a token as rows of 256, when
    attention's weights were still kept for the gradient. On a TPU it is the compiler's cycles that say so:
    38 % of those of a full XL step on rows of 512 for 9 % of its FLOPs; an expert's batch costs about 20 ms
    outside of its layers, and a full one's the gathers and moments of all kernels.
    """
    inner = network.num_heads * network.head_dim
    wide = network.mlp_dim * (len(network.mlp_activations) + 1)
    products = 2 * inner / (network.emb_dim * (4 * inner + wide))
    if platform == "cpu":
        return BatchCost(7.0 * products)
    return BatchCost(6.0 * products, overhead=2048 if kind == "full" else 512, strictness=0)


def filled(given: Sequence[Known], shape: Shape, places: int, parts: int) -> float:
    """Returns the share of real tokens in the first batches of the first jobs."""
    done, waiting = [0] * len(given), [of_step(each, place, 0) for place, each in enumerate(given)]
    real = 0

    def left(place: int) -> int:
        job = given[place].job
        return (job.steps - done[place]) * job.batch_size - (job.batch_size - len(waiting[place]))

    for _ in range(TRIED):
        order = sorted(range(len(given)), key=left, reverse=True)
        batch = pack([waiting[place] for place in order], shape, places=places, parts=parts)
        for offer in batch.taken:
            waiting[offer.place].remove(offer)
            real += offer.prompt + offer.target
        for place, each in enumerate(given):
            if not waiting[place]:
                done[place] += 1
                waiting[place] = of_step(each, place, done[place])
    return real / (TRIED * shape.tokens)


def assemble(batch: Batch, of: Mapping[int, Job], which: slice = slice(None), *, own: int) -> step.Rows:
    """Lays out rows of a batch, all or those of a slice, folded ones together: no others are read.

    `of` has the job of every place, `own` is how many places a part of the mesh has; places are numbered
    within it.
    """
    chosen, shape = batch.rows[which], batch.shape
    widths = (shape.prompt, shape.prompt, shape.target, shape.target, *(shape.segments,) * 3)
    dtypes = (*(np.int32,) * 5, np.float32, np.uint32)
    counts = [len(chosen) // (shape.folded if name in step.OF_TARGETS else 1) for name in step.Rows._fields]
    laid = step.Rows(
        *(np.zeros((rows, wide), kind) for rows, wide, kind in zip(counts, widths, dtypes, strict=True))
    )
    target = 0
    for number, row in enumerate(chosen):
        beside, nth = divmod(number, shape.folded)
        prompt, target = 0, target if nth else 0
        # Segments that are not there are its first one's expert: no other is to meet what stands in the row.
        laid.place[number] = row[0].place % own if row else 0
        for segment, offer in enumerate(row):
            job = of[offer.place]
            here = number, slice(prompt, prompt + offer.prompt)
            there = beside, slice(target, target + offer.target)
            laid.prompts[here], laid.prompt_segments[here] = job.prompts[offer.row], segment + 1
            laid.targets[there] = job.targets[offer.row]
            laid.target_segments[there] = nth * shape.segments + segment + 1
            laid.place[number, segment] = offer.place % own
            laid.share[number, segment] = offer.share
            laid.seeds[number, segment] = offer.seed
            prompt, target = here[1].stop, there[1].stop
    return laid


def _up(number: int | float) -> int:
    return -(-int(number) // STEP) * STEP
