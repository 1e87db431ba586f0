"""Subsets: which rows of a split are taken when not all are wanted."""

from collections.abc import Sequence

import numpy as np


def first(count: int, rows: int) -> Sequence[int]:
    """Returns the numbers of the first rows."""
    return range(min(count, rows))


def shuffled(count: int, rows: int, *, seed: int) -> Sequence[int]:
    """Returns the start of a permutation of `count` rows: at most `rows` of them, in its order.

    It is the permutation that the paper's code draws (`torch.randperm` on a CPU, seed 42), so the same source
    gives the same rows; and its start is the same however much of it is asked for.

    >>> shuffled(10, 4, seed=42)
    [2, 6, 1, 8]
    """
    rows = min(count, rows)
    # Fisher and Yates' shuffle from the front, with the raw draws of MT19937. Only what has moved is kept.
    draws = np.random.RandomState(seed).randint(0, 2**32, size=rows, dtype=np.uint32)
    moved: dict[int, int] = {}
    taken = []
    for place in range(rows):
        other = place + int(draws[place]) % (count - place)
        taken.append(moved.get(other, other))
        moved[other] = moved.get(place, place)
    return taken
