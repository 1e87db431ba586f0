"""SLERP: from one expert's change towards another's along the arc between them (Shoemake 1985).

`sin((1-t)Ω)/sin Ω a + sin(tΩ)/sin Ω b` for each layer's tensor, with Ω the angle between the two changes and
t the second's share. Unlike the mean it does not shorten changes that point apart.

A mean on the sphere of more than two has no closed form. Experts are therefore folded in one after another,
each at its share of those so far; for equal arcs the order does not matter, in general it does.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from elm_jax.merging import changes as changed
from elm_jax.merging.method import Method
from elm_jax.merging.parts import Piece, Tensor

NEARLY_PARALLEL = 0.9995  # above this cosine arc and chord are one, and sin Ω is too small to divide by


def slerp(first: Tensor, second: Tensor, t: float) -> Tensor:
    """Returns the change at t between two; on the straight line where they are parallel, opposed or zero."""
    size = math.sqrt(_dot(first, first) * _dot(second, second))
    cosine = _dot(first, second) / size if size > 0 else 1.0
    if abs(cosine) > NEARLY_PARALLEL:
        here, there = 1 - t, t
    else:
        angle = math.acos(cosine)
        here, there = math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
    return np.float32(here) * first + np.float32(there) * second


def fold(changes: Iterable[np.ndarray], weights: Sequence[float]) -> Tensor:
    """Returns the changes folded in one after another, each at its share of the weights so far."""
    sofar: np.ndarray | None = None
    before = 0.0
    for change, weight in zip(changes, weights, strict=True):
        sofar = change if sofar is None else slerp(sofar, change, weight / (before + weight))
        before += weight
    if sofar is None:
        raise ValueError("no changes to fold")
    return np.asarray(sofar)


def _dot(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.vdot(first, second))


def _combine(changes: Sequence[np.ndarray], piece: Piece) -> Tensor:
    return fold(changes, piece.weights)


METHOD = Method(
    says="along the arc between two changes; more are folded in one after another",
    on="changes",
    combine=_combine,
    options=changed.OPTIONS,
    symmetric=False,
    needs_base=True,
    refusal=changed.refusal,
    notes=changed.NOTES,
)
