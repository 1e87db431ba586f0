"""Magnitudes: the smallest magnitude that stays when only a share of a whole network's values does."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

HISTOGRAM_BINS = 1 << 16


def find_thresholds(
    layers: Callable[[], Iterable[Sequence[np.ndarray]]], experts: int, density: float
) -> list[np.float32]:
    """Returns for each expert the magnitude from which on values are kept, over all layers together.

    As the authors of TIES count: of d values the (d - ⌊d density⌋)-th smallest magnitude is the first one
    kept, so that one more than the share is. It is exact and holds no layer: magnitudes in float32 have the
    order of their bits, of which one pass counts the upper half, and another the lower half within the bin
    that was found.

    Args:
        layers: Starts a pass; each layer is one array per expert.
        experts: How many experts there are.
        density: The share of values kept.
    """
    upper = np.zeros((experts, HISTOGRAM_BINS), np.int64)
    for values in layers():
        for number in range(experts):
            upper[number] += np.bincount((_bits(values[number]) >> 16).ravel(), minlength=HISTOGRAM_BINS)
    counts = upper.sum(axis=1)
    # Of so many smaller values, counted from 0; with a density of 1 all are kept.
    places = np.maximum(counts - (counts * density).astype(np.int64) - 1, 0)
    bins = [
        int(np.searchsorted(np.cumsum(row), place, "right")) for row, place in zip(upper, places, strict=True)
    ]
    lower = np.zeros((experts, HISTOGRAM_BINS), np.int64)
    for values in layers():
        for number, own in enumerate(bins):
            bits = _bits(values[number])
            lower[number] += np.bincount(
                bits[(bits >> 16) == own] & (HISTOGRAM_BINS - 1), minlength=HISTOGRAM_BINS
            )
    thresholds = []
    for number, own in enumerate(bins):
        inside = places[number] - upper[number, :own].sum()
        rest = int(np.searchsorted(np.cumsum(lower[number]), inside, "right"))
        thresholds.append(np.uint32((own << 16) + rest).view(np.float32))
    return thresholds


def _bits(values: np.ndarray) -> np.ndarray:
    return np.abs(np.ascontiguousarray(values, np.float32)).view(np.uint32)
