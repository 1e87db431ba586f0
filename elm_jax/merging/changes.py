"""Changes: what experts change in the base, ΔW, and how a merged change becomes an expert again.

Methods on changes combine effects: the sum of two LoRA experts' ΔW does what both do, while the product of
summed factors has cross terms that neither expert was trained with. `parameter_groups` says what ΔW is for
each form.

A merged ΔW of LoRA is dense. It is written as LoRA again by a truncated singular value decomposition of a
given rank; by default the rank is the sum of the experts' ranks, at most what the kernel has. Methods that
are linear in ΔW then lose nothing. TIES and DARE, whose ΔW has any rank, lose what the recipe gives as
`error`. Merging factor by factor instead would keep the rank, but the result would no longer be about ΔW.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from elm_jax.merging import lowrank
from elm_jax.merging.method import MergeOption, Options
from elm_jax.merging.parameter_groups import Form, MergeInputs, ParameterGroup, Tensor

RANK = MergeOption(
    int,
    None,
    "rank of merged LoRA; default: the sum of the experts' ranks",
    "a whole number of at least 1",
    lambda value: value >= 1,
    form="lora",
)
ADAPTERS = MergeOption(
    str,
    None,
    "how adapters are merged, which have no ΔW: average or concatenate; only norm scales go by this method",
    "'average' or 'concatenate'",
    lambda value: value in ("average", "concatenate"),
    form="adapter",
)
SCALE = MergeOption(float, 1.0, "λ, by which the merged change is multiplied", "a finite number")
OPTIONS: Mapping[str, MergeOption] = {"rank": RANK, "adapters": ADAPTERS}
"""Options of every method on changes; they are not handed to the method's function."""
NOTES: Mapping[Form, str] = {"lora": "ΔW was merged, not the factors, and written as LoRA again."}


@dataclass(frozen=True)
class ExpertChanges(Sequence[np.ndarray]):
    """The experts' ΔW of one layer of a parameter group, in float32; each is computed when it is read."""

    inputs: MergeInputs
    compute: Callable[[tuple[np.ndarray, ...]], np.ndarray]

    def __len__(self) -> int:
        return len(self.inputs.values)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        return self.compute(self.inputs.values[at])


@dataclass(frozen=True)
class WrittenChange:
    """A merged change as an expert's leaves.

    Attributes:
        leaves: In float32, in the order of the group's leaves.
        squared_error: What writing it as LoRA lost, the squared Frobenius norm; 0 for other forms.
        squared_norm: The squared Frobenius norm of the change; 0 for other forms.
    """

    leaves: Sequence[np.ndarray]
    squared_error: float = 0.0
    squared_norm: float = 0.0


def find_adapter_conflict(groups: Sequence[ParameterGroup], options: Options) -> str | None:
    """Says why changes cannot be merged: adapters have none, and no option says how to merge them."""
    if any(group.form == "adapter" for group in groups) and options.get("adapters") is None:
        return (
            "it works on ΔW, what an expert changes in the base, and adapters are networks of their own "
            "(with option 'adapters', average or concatenate, only norm scales are merged by it)"
        )
    return None


def compute_changes(inputs: MergeInputs) -> ExpertChanges:
    """Returns the experts' changes."""
    form, base = inputs.group.form, inputs.base
    if form == "lora":
        return ExpertChanges(inputs, lambda leaves: _as_float32(leaves[0]) @ _as_float32(leaves[1]))
    if form == "vector":
        return ExpertChanges(inputs, lambda leaves: _as_float32(leaves[0]) - np.float32(1))
    if form == "value":
        # A method for which the base cancels out gets none, and zero takes its place.
        return ExpertChanges(
            inputs, lambda leaves: _as_float32(leaves[0]) - (0 if base is None else _as_float32(base))
        )
    raise ValueError(f"{form} groups have no change")


def write_change(inputs: MergeInputs, change: Tensor, rank: int | None) -> WrittenChange:
    """Returns the leaves that make up a change; `rank` is that of LoRA."""
    form = inputs.group.form
    if form == "lora":
        summed_rank = sum(lora_a.shape[-1] for lora_a, _ in inputs.values)
        lora_a, lora_b = lowrank.factor(change, min(rank or summed_rank, *change.shape))
        norm = math.fsum(np.square(change, dtype=np.float64).sum(axis=1))
        return WrittenChange([lora_a, lora_b], lowrank.squared_error(change, lora_a, lora_b), norm)
    if form == "vector":
        return WrittenChange([change + np.float32(1)])
    return WrittenChange([change if inputs.base is None else _as_float32(inputs.base) + change])


def change_shape(group: ParameterGroup, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Returns the shape of a group's change, layers included, by the shapes of its leaves."""
    return (*shapes[0][:-1], shapes[1][-1]) if group.form == "lora" else shapes[0]


def _as_float32(value: np.ndarray) -> np.ndarray:
    return np.asarray(value, np.float32)
