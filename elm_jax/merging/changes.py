"""Changes: what experts change in the base, ΔW, tensor by tensor; and a merged change made an expert again.

Methods on changes combine effects: the sum of two LoRA experts' ΔW does what both do, while the product of
summed factors has cross terms that neither expert was trained with. `parts` tells what ΔW is of each form.

A merged ΔW of LoRA is dense. It is written as LoRA again by a truncated singular value decomposition of a
stated rank; without one the rank is the sum of the experts' ranks (never more than the kernel has). There
methods that are linear in ΔW lose nothing, while TIES and DARE, whose ΔW has any rank, lose what the recipe
gives as `error`. Merging factor by factor instead would keep the rank and lose what ΔW is about.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from elm_jax.merging import lowrank
from elm_jax.merging.method import Option, Options
from elm_jax.merging.parts import Form, Part, Piece, Tensor

RANK = Option(
    int,
    None,
    "rank of merged LoRA; without it the sum of the experts' ranks",
    "A whole number of at least 1",
    lambda value: value >= 1,
    form="lora",
)
ADAPTERS = Option(
    str,
    None,
    "how adapters are merged, which have no ΔW: average or concatenate; only norm scales go by this method",
    "'average' or 'concatenate'",
    lambda value: value in ("average", "concatenate"),
    form="adapter",
)
SCALE = Option(float, 1.0, "λ, by which the merged change is multiplied", "A finite number")
OPTIONS = {"rank": RANK, "adapters": ADAPTERS}
"""What every method on changes takes."""
NOTES: Mapping[Form, str] = {"lora": "ΔW was merged, not the factors, and written as LoRA again."}


@dataclass(frozen=True)
class Changes(Sequence[np.ndarray]):
    """The experts' ΔW of one piece in float32, each made anew when it is asked for."""

    piece: Piece
    make: Callable[[tuple[np.ndarray, ...]], np.ndarray]

    def __len__(self) -> int:
        return len(self.piece.values)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        return self.make(self.piece.values[at])


def refusal(parts: Sequence[Part], options: Options) -> str | None:
    """Returns why changes cannot be merged, None if they can."""
    if any(part.form == "adapter" for part in parts) and options.get("adapters") is None:
        return (
            "it works on ΔW, what an expert changes in the base, and adapters are networks of their own "
            "(with option 'adapters', average or concatenate, they are merged so and norm scales by it)"
        )
    return None


def of(piece: Piece) -> Changes:
    """Returns the experts' changes."""
    form, base = piece.part.form, piece.base
    if form == "lora":
        return Changes(piece, lambda leaves: _plain(leaves[0]) @ _plain(leaves[1]))
    if form == "vector":
        return Changes(piece, lambda leaves: _plain(leaves[0]) - np.float32(1))
    if form == "value":
        # Where the base cancels it may be left out, and zero stands for it.
        return Changes(piece, lambda leaves: _plain(leaves[0]) - (0 if base is None else _plain(base)))
    raise ValueError(f"{form} parts have no change")


def back(piece: Piece, change: Tensor, rank: int | None) -> tuple[list[np.ndarray], float, float]:
    """Returns the leaves that make a change, in float32, and its squared norm: how much is lost, and of what.

    `rank` is that of LoRA; of the other forms nothing is lost.
    """
    form = piece.part.form
    if form == "lora":
        several = sum(first.shape[-1] for first, _ in piece.values)
        first, second = lowrank.factored(change, min(rank or several, *change.shape))
        size = math.fsum(np.square(change, dtype=np.float64).sum(axis=1))
        return [first, second], lowrank.lost(change, first, second), size
    if form == "vector":
        return [change + np.float32(1)], 0.0, 0.0
    return [change if piece.base is None else _plain(piece.base) + change], 0.0, 0.0


def shape_of(part: Part, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Returns the shape of a part's change, layers included, by the shapes of its leaves."""
    return (*shapes[0][:-1], shapes[1][-1]) if part.form == "lora" else shapes[0]


def _plain(value: np.ndarray) -> np.ndarray:
    return np.asarray(value, np.float32)
