"""Batches: examples of all experts of a group, packed into rows of one shape.

Every expert has the examples of its step that were in no batch yet. A batch takes what fits, of those experts
first that have most to do, and fills its rows with whatever else goes in. So little of it is padding,
whatever lengths and batch sizes the experts have, and one program serves all of them. What an expert sees in
a step depends neither on its slot nor on its neighbours.
"""

import bisect
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from elm_jax.models.sizes import T5Config
from elm_jax.training import jobs, step
from elm_jax.training.jobs import TrainingJob

LENGTH_MULTIPLE = 8  # lengths are multiples of it
MOST_SEGMENTS = 8  # in a row; every one of them costs its part of an adapter's products for all
FILL_PENALTY_THRESHOLD = 0.93  # of a batch that is real; on a CPU what has less is much the worse for it
EMPTY, SHARED = -1, -2  # owner of a row that is not an isolated expert's
TRIAL_BATCHES = 24  # batches that a shape is tried on
PROMPT_ROWS_PER_TARGET_ROW = (1, 2, 4)  # rows whose targets are in one


class BatchCost(NamedTuple):
    """What a batch costs beside its tokens' products, by which its shape is chosen.

    Attributes:
        attention: of a token that attends to another, as a part of what a token costs itself.
        overhead: tokens of each device that a batch costs beside its own: parameters are read, kernels
            gathered, and experts moved.
        fill_penalty_power: the power to which a share of real tokens below `FILL_PENALTY_THRESHOLD` counts.
    """

    attention: float = 0.0
    overhead: int = 256
    fill_penalty_power: int = 4


UNKNOWN_COST = BatchCost()
"""Of a network that is not known: tokens cost what they cost."""


class Shape(NamedTuple):
    """Shape of a batch.

    Attributes:
        rows: of prompts.
        prompt: tokens of a row of prompts.
        target: tokens of a row of targets.
        segments: of each row of prompts, at most.
        folded: rows of prompts whose targets are in one row of targets: an outlier finds room there beside
            short ones, and not every row has to be as wide as it.
        choices: of an example at most, where the loss reads them; its targets are then all of them.
    """

    rows: int
    prompt: int
    target: int
    segments: int
    folded: int = 1
    choices: int = 1

    @property
    def tokens(self) -> int:
        """How many are computed, padding among them."""
        return self.rows * self.prompt + self.rows // self.folded * self.target


@dataclass(frozen=True, eq=False)
class JobWithLengths:
    """A job and the lengths of all of its rows.

    Attributes:
        job: the job.
        prompt: tokens of each prompt.
        target: tokens of each target, and of its wrong choices if the loss reads them.
        wrong: tokens of the wrong choices alone.
        choices: of a row at most, the target among them.
    """

    job: TrainingJob
    prompt: np.ndarray
    target: np.ndarray
    wrong: np.ndarray | None = None
    choices: int = 1


@dataclass(frozen=True)
class PendingExample:
    """An example that waits for a batch.

    Attributes:
        slot: of its expert.
        number: which of the step's rows it is.
        row: which of the job's rows it is.
        prompt: tokens.
        target: tokens, those of wrong choices among them.
        share: 1 / the target tokens of the expert's step.
        seed: what its dropout is drawn from.
        wrong_choice_weight: 1 / the tokens of wrong choices of the expert's step.
        row_weight: 1 / the rows of the expert's step.
    """

    slot: int
    number: int
    row: int
    prompt: int
    target: int
    share: float
    seed: int
    wrong_choice_weight: float = 0.0
    row_weight: float = 0.0


StepExamples = Callable[[int, int], Sequence[PendingExample]]
"""Returns the examples of a step of the job in a slot."""


@dataclass(frozen=True)
class Batch:
    """The examples in the rows of a batch."""

    shape: Shape
    rows: tuple[tuple[PendingExample, ...], ...]

    @property
    def examples(self) -> list[PendingExample]:
        """All of them, row by row."""
        return [example for row in self.rows for example in row]


def measure(job: TrainingJob) -> JobWithLengths:
    """Returns a job with the lengths of its rows."""
    prompt, target = jobs.token_counts(job.prompts), jobs.token_counts(job.targets)
    if job.wrong is None:
        return JobWithLengths(job, prompt, target)
    wrong = np.array([sum(map(len, choices)) for choices in job.wrong], np.int32)
    return JobWithLengths(job, prompt, target + wrong, wrong, 1 + max(map(len, job.wrong), default=0))


def measure_validation(job: TrainingJob) -> JobWithLengths | None:
    """Returns the rows that a job's expert is validated on, as a job; None if it has none."""
    if job.validation is None:
        return None
    return measure(replace(job, prompts=job.validation.prompts, targets=job.validation.targets, wrong=None))


def step_examples(measured: JobWithLengths, slot: int, step_number: int) -> list[PendingExample]:
    """Returns the examples of a step of the job in a slot; the first step is 0."""
    rows = jobs.rows_of_step(measured.job, step_number)
    seeds = step.dropout_seeds(measured.job.seed, step_number, len(rows))
    return _pending_examples(measured, slot, rows, seeds)


def all_examples(measured: JobWithLengths, slot: int) -> list[PendingExample]:
    """Returns all rows of a job as the examples of one step, in their own order."""
    count = len(measured.prompt)
    return _pending_examples(measured, slot, np.arange(count), np.zeros(count, np.uint32))


def _pending_examples(
    measured: JobWithLengths, slot: int, rows: np.ndarray, seeds: np.ndarray
) -> list[PendingExample]:
    prompt, target = measured.prompt[rows], measured.target[rows]
    wrong = 0 if measured.wrong is None else int(measured.wrong[rows].sum())
    share = 1 / max(int(target.sum()) - wrong, 1)
    of_choices = (1 / max(wrong, 1), 1 / len(rows))
    columns = zip(rows.tolist(), prompt.tolist(), target.tolist(), seeds.tolist(), strict=True)
    return [
        PendingExample(slot, number, row, s, t, share, seed, *of_choices)
        for number, (row, s, t, seed) in enumerate(columns)
    ]


def pack(
    pending: Sequence[Sequence[PendingExample]],
    shape: Shape,
    *,
    slots: int,
    parts: int = 1,
    isolated: frozenset[int] = frozenset(),
) -> Batch:
    """Returns the next batch.

    On a mesh whose `expert` axis has several parts, each part has its own `slots / parts` experts and its own
    rows of every batch: one part's after another's.

    Args:
        pending: the examples of each expert, those with most to do first.
        shape: of the batch.
        slots: of the group.
        parts: of the mesh's expert axis.
        isolated: slots that share no row: what is not finite spreads in a row, and no further.
    """
    by_part: list[list[Sequence[PendingExample]]] = [[] for _ in range(parts)]
    for examples in pending:
        if examples:
            by_part[examples[0].slot // (slots // parts)].append(examples)
    each = shape._replace(rows=shape.rows // parts)
    return Batch(shape, tuple(row for own in by_part for row in _pack_part(own, each, isolated)))


def _pack_part(
    pending: Sequence[Sequence[PendingExample]], shape: Shape, isolated: frozenset[int]
) -> list[tuple[PendingExample, ...]]:
    """Fills rows with the best fit, the longest first, of twice as many examples as there is room for."""
    room = 2 * shape.rows * shape.prompt
    chosen: list[PendingExample] = []
    for examples in pending:
        chosen += examples
        room -= sum(example.prompt for example in examples)
        if room < 0:
            break
    order = {slot: number for number, slot in enumerate(dict.fromkeys(example.slot for example in chosen))}
    # Those of the first expert come before all, so that no example waits for ever.
    chosen.sort(key=lambda each: (order[each.slot] > 0, -each.prompt, order[each.slot], each.number))
    rows: list[list[PendingExample]] = [[] for _ in range(shape.rows)]
    open_rows = [(shape.prompt, row) for row in range(shape.rows)]  # by the tokens that are left
    target_left = [shape.target] * (shape.rows // shape.folded)
    owner = [EMPTY] * len(target_left)
    for example in chosen:
        own = example.slot if example.slot in isolated else SHARED
        for at in range(bisect.bisect_left(open_rows, (example.prompt, 0)), len(open_rows)):
            left, row = open_rows[at]
            target = row // shape.folded
            if target_left[target] >= example.target and owner[target] in (EMPTY, own):
                rows[row].append(example)
                target_left[target] -= example.target
                owner[target] = own
                del open_rows[at]
                if len(rows[row]) < shape.segments:
                    bisect.insort(open_rows, (left - example.prompt, row))
                break
    return [tuple(row) for row in rows]


def choose_shape(
    measured: Sequence[JobWithLengths],
    batch_tokens: int,
    *,
    slots: int,
    parts: int = 1,
    multiple: int = 1,
    cost: BatchCost = UNKNOWN_COST,
) -> Shape:
    """Returns the shape that batches of these jobs are best packed into, tried on their first steps.

    It is one that is filled well, and of those the one that costs least for a real token.

    Args:
        measured: the jobs.
        batch_tokens: of a batch, at most, unless one row on each device has more.
        slots: of the group.
        parts: of the mesh's expert axis.
        multiple: that the number of rows has: of the devices that split them.
        cost: of a batch.
    """
    every = [*measured, *(own for each in measured if (own := measure_validation(each.job)))]
    longest = max(int(each.prompt.max()) for each in every)
    widest = max(int(each.target.max()) for each in every)
    prompt = float(np.mean([each.prompt.mean() for each in measured]))
    target = float(np.mean([each.target.mean() for each in measured]))
    choices = max(each.choices for each in measured)
    step_tokens = int(sum(each.prompt.mean() * each.job.batch_size for each in measured[:slots]))
    shapes: dict[Shape, None] = {}
    for stretch in (1.0, 1.25, 1.5, 2.0):
        length = _round_up(longest * stretch)
        segments = min(MOST_SEGMENTS, math.ceil(1.3 * length / prompt))
        for slack, folded in itertools.product((1.15, 1.6), PROMPT_ROWS_PER_TARGET_ROW):
            fitting = slack * target * length / prompt
            answer = _round_up(max(widest, fitting * folded))
            if folded > 1 and fitting * folded / 2 >= widest:
                continue  # folded half as far, rows are wide enough for the widest already
            needed, row, least = -(-step_tokens // length), length + answer / folded, multiple * folded
            if shapes and least * row > batch_tokens:
                continue
            most = min(int(batch_tokens // row), needed + needed // 4 + 1)
            for rows in {max(1, most // by // least) * least for by in (1, 2, 4, 8)}:
                shapes[Shape(rows, length, answer, segments, folded, choices)] = None

    def spent(shape: Shape) -> float:
        return shape.tokens * (1 + cost.attention * shape.prompt) + cost.overhead * multiple

    def highest_worth(shape: Shape) -> float:
        return shape.tokens / spent(shape)  # of batches without padding

    examples, best = _examples_of_steps(measured), (0.0, next(iter(shapes)))
    for shape in sorted(shapes, key=highest_worth, reverse=True):
        if highest_worth(shape) < best[0]:
            break
        share = fill_ratio(measured[:slots], shape, slots, parts, examples)
        worth = (
            share
            * shape.tokens
            / spent(shape)
            * min(1.0, share / FILL_PENALTY_THRESHOLD) ** cost.fill_penalty_power
        )
        best = max(best, (worth, shape))
    return best[1]


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
    return BatchCost(6.0 * products, overhead=2048 if kind == "full" else 512, fill_penalty_power=0)


def fill_ratio(
    measured: Sequence[JobWithLengths],
    shape: Shape,
    slots: int,
    parts: int,
    examples: StepExamples | None = None,
) -> float:
    """Returns the share of real tokens in the first batches of the first jobs.

    Args:
        measured: the jobs.
        shape: of the batches.
        slots: of the group.
        parts: of the mesh's expert axis.
        examples: of a job's step; default: they are made.
    """
    examples = examples or _examples_of_steps(measured)
    done, pending = [0] * len(measured), [examples(slot, 0) for slot in range(len(measured))]
    real = 0

    def rows_left(slot: int) -> int:
        job = measured[slot].job
        return (job.steps - done[slot]) * job.batch_size - (job.batch_size - len(pending[slot]))

    for _ in range(TRIAL_BATCHES):
        order = sorted(range(len(measured)), key=rows_left, reverse=True)
        batch = pack([pending[slot] for slot in order], shape, slots=slots, parts=parts)
        taken: list[set[int]] = [set() for _ in measured]
        for example in batch.examples:
            taken[example.slot].add(example.number)
            real += example.prompt + example.target
        for slot, numbers in enumerate(taken):
            if numbers:
                pending[slot] = [each for each in pending[slot] if each.number not in numbers]
            if not pending[slot]:
                done[slot] += 1
                pending[slot] = examples(slot, done[slot])
    return real / (TRIAL_BATCHES * shape.tokens)


def holds_steps(measured: Sequence[JobWithLengths], shape: Shape, slots: int, parts: int) -> bool:
    """Returns whether a batch has room for a whole step of every slot's expert, tried on the first steps."""
    own = measured[:slots]
    for number in range(min(TRIAL_BATCHES, *(each.job.steps for each in own))):
        pending = [step_examples(each, slot, number) for slot, each in enumerate(own)]
        batch = pack(pending, shape, slots=slots, parts=parts)
        if len(batch.examples) < sum(map(len, pending)):
            return False
    return True


def _examples_of_steps(measured: Sequence[JobWithLengths]) -> StepExamples:
    """Returns a function that makes the examples of a job's step once."""

    @functools.cache
    def examples(slot: int, number: int) -> list[PendingExample]:
        return step_examples(measured[slot], slot, number)

    return examples


def assemble(
    batch: Batch, job_of: Mapping[int, TrainingJob], which: slice = slice(None), *, slots_of_part: int
) -> step.Rows:
    """Returns the arrays of a batch, or of some of its rows; the tokens of other rows are not read.

    Args:
        batch: the batch.
        job_of: the job of every slot.
        which: rows of prompts, folded ones together.
        slots_of_part: slots of a part of the mesh; slots are numbered within it.
    """
    chosen, shape = batch.rows[which], batch.shape
    widths = (shape.prompt, shape.prompt, shape.target, shape.target, *(shape.segments,) * 3)
    dtypes = (*(np.int32,) * 5, np.float32, np.uint32)
    counts = [
        len(chosen) // (shape.folded if name in step.OF_TARGETS else 1) for name in step.ALWAYS_PRESENT_FIELDS
    ]
    parts: list[Any] = [
        np.zeros((rows, wide), kind) for rows, wide, kind in zip(counts, widths, dtypes, strict=True)
    ]
    arrays = step.Rows(*parts)
    if shape.choices > 1:
        arrays = arrays._replace(
            choices=step.ChoiceRows(
                np.zeros(arrays.targets.shape, np.int32),
                np.zeros((*arrays.share.shape, shape.choices), np.int32),
                np.zeros(arrays.share.shape, np.float32),
                np.zeros(arrays.share.shape, np.float32),
            )
        )
    target = 0
    for number, row in enumerate(chosen):
        target_row, nth = divmod(number, shape.folded)
        prompt, target = 0, target if nth else 0
        # Segments that are not there are its first one's expert: no other is to meet what is in the row.
        arrays.slot[number] = row[0].slot % slots_of_part if row else 0
        for segment, example in enumerate(row):
            job = job_of[example.slot]
            prompt_at = number, slice(prompt, prompt + example.prompt)
            target_at = target_row, slice(target, target + example.target)
            arrays.prompts[prompt_at], arrays.prompt_segments[prompt_at] = (
                job.prompts[example.row],
                segment + 1,
            )
            answers = [job.targets[example.row], *(job.wrong[example.row] if job.wrong else ())]
            arrays.targets[target_at] = np.concatenate(answers)
            if arrays.choices is not None:
                lengths = list(map(len, answers))
                numbers = np.arange(1, len(answers) + 1)
                arrays.choices.target_choices[target_at] = np.repeat(numbers, lengths)
                arrays.choices.lengths[number, segment, : len(answers)] = lengths
                arrays.choices.wrong_choice_weight[number, segment] = example.wrong_choice_weight
                arrays.choices.row_weight[number, segment] = example.row_weight
            arrays.target_segments[target_at] = nth * shape.segments + segment + 1
            arrays.slot[number, segment] = example.slot % slots_of_part
            arrays.share[number, segment] = example.share
            arrays.seeds[number, segment] = example.seed
            prompt, target = prompt_at[1].stop, target_at[1].stop
    return arrays


def _round_up(number: int | float) -> int:
    return -(-int(number) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
