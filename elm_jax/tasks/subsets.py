"""Subsets: the numbers of the rows that are taken of a split if not all are."""

from collections.abc import Sequence

import numpy as np


def shuffled_rows(count: int, rows: int, *, seed: int) -> Sequence[int]:
    """Returns the start of a permutation of `count` rows: at most `rows` of them, in its order.

    This is the permutation of the paper's code (`torch.randperm` on a CPU, seed 42), so the same source gives
    the same rows. Its start does not depend on `rows`.

    >>> shuffled_rows(10, 4, seed=42)
    [2, 6, 1, 8]
    """
    rows = min(count, rows)
    # Fisher and Yates' shuffle from the front, with the raw draws of MT19937. Only moved numbers are stored.
    draws = np.random.RandomState(seed).randint(0, 2**32, size=rows, dtype=np.uint32)
    moved: dict[int, int] = {}
    numbers = []
    for place in range(rows):
        other = place + int(draws[place]) % (count - place)
        numbers.append(moved.get(other, other))
        moved[other] = moved.get(place, place)
    return numbers
