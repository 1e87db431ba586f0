"""Subsets: the numbers of the rows that are taken of a split if not all are."""

from collections.abc import Sequence
from typing import SupportsIndex, overload

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


class ShuffledNumbers(Sequence[int]):
    """The start of a permutation, drawn as far as it is asked for.

    >>> ShuffledNumbers(10, 8, seed=42)[1:4]
    [6, 1, 8]
    """

    def __init__(self, count: int, rows: int, *, seed: int) -> None:
        self._count, self._rows, self._seed = count, min(count, rows), seed
        self._drawn: Sequence[int] = ()

    def __len__(self) -> int:
        return self._rows

    @overload
    def __getitem__(self, index: SupportsIndex) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> int | Sequence[int]:
        places = range(self._rows)[index]
        wanted = 1 + max(places, default=-1) if isinstance(places, range) else 1 + places
        if wanted > len(self._drawn):
            drawn = min(self._rows, max(wanted, 2 * len(self._drawn)))
            self._drawn = shuffled_rows(self._count, drawn, seed=self._seed)
        return [self._drawn[place] for place in places] if isinstance(places, range) else self._drawn[places]
