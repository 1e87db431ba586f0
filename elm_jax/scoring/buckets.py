"""Buckets: the few shapes that rows are batched in, chosen from the data's own lengths.

Every row goes into the smallest bucket that holds its prompt, its answers and its number of choices. Few
shapes mean few compilations; a row's scores do not depend on the bucket it falls in.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from elm_jax.errors import UserError
from elm_jax.records import ChoiceBatch

Tokens = Sequence[int] | np.ndarray
# Every shape costs a compilation, which on short rows outweighs the padding that a finer ladder would save.
LADDER = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
CHOICES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
TOKENS = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)


@dataclass(frozen=True)
class Row:
    """One row to score: a prompt, its answer choices, and which of the stacked experts scores it."""

    prompt: Tokens
    answers: Sequence[Tokens]
    expert: int = 0


def rung(length: int, ladder: Sequence[int], *, what: str) -> int:
    """Returns the smallest step of the ladder that holds `length`."""
    for step in ladder:
        if length <= step:
            return step
    raise UserError(f"A {what} of at most {ladder[-1]} is wanted, but one of {length} came.")


def shape_of(row: Row) -> tuple[int, int, int]:
    """Returns the bucket (S, C, T) of a row."""
    if not row.answers:
        raise UserError(
            "Rank classification wants at least one answer choice a row, but a row with none came."
        )
    return (
        rung(len(row.prompt), LADDER, what="prompt length"),
        rung(len(row.answers), CHOICES, what="number of choices"),
        rung(max(len(answer) for answer in row.answers), TOKENS, what="answer length"),
    )


def batches(rows: Sequence[Row], *, batch_size: int) -> Iterator[ChoiceBatch]:
    """Yields every row once, bucket by bucket, in batches of `batch_size` rows; the last one is filled up."""
    buckets: dict[tuple[int, int, int], list[int]] = {}
    for position, row in enumerate(rows):
        buckets.setdefault(shape_of(row), []).append(position)
    for shape, members in sorted(buckets.items(), reverse=True):
        for start in range(0, len(members), batch_size):
            yield assemble(rows, members[start : start + batch_size], shape, batch_size)


def assemble(
    rows: Sequence[Row], members: Sequence[int], shape: tuple[int, int, int], batch_size: int
) -> ChoiceBatch:
    """Pads the rows at `members` to one batch [batch_size, S], [batch_size, C, T]."""
    length, choices, tokens = shape
    prompts = np.zeros((batch_size, length), np.int32)
    answers = np.zeros((batch_size, choices, tokens), np.int32)
    choice_mask = np.zeros((batch_size, choices), bool)
    experts = np.zeros(batch_size, np.int32)
    positions = np.full(batch_size, -1, np.int32)
    for slot, position in enumerate(members):
        row = rows[position]
        prompts[slot, : len(row.prompt)] = row.prompt
        for choice, answer in enumerate(row.answers):
            answers[slot, choice, : len(answer)] = answer
        choice_mask[slot, : len(row.answers)] = True
        experts[slot] = row.expert
        positions[slot] = position
    return ChoiceBatch(prompts, answers, choice_mask, experts, positions)
