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
from elm_jax.merging.lowrank import Factors, Matrix
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
SUM_SCALE = MergeOption(
    float, None, "λ, by which the sum is multiplied; default: 1 / N, which makes it a mean", "a finite number"
)
OPTIONS: Mapping[str, MergeOption] = {"rank": RANK, "adapters": ADAPTERS}
"""Options of every method on changes; they are not handed to the method's function."""
FindConflict = Callable[[Sequence[ParameterGroup], Options], str | None]
FORMS_WITHOUT_DELTA: Mapping[Form, str] = {
    "dora": "a merged ΔW has no magnitudes and factors of DoRA that make it up",
    "vera": "a merged ΔW has no two vectors of VeRA that make it up",
    "prompt": "a soft prompt changes none of its parameters",
}
"""Form -> why parameters of that form have no ΔW that could be merged."""
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
class ChangeLeaves:
    """A merged change as an expert's leaves.

    Attributes:
        leaves: In float32, in the order of the group's leaves.
        squared_error: What writing it as LoRA lost, the squared Frobenius norm; 0 for other forms.
        squared_norm: The squared Frobenius norm of the change; 0 for other forms.
    """

    leaves: Sequence[np.ndarray]
    squared_error: float = 0.0
    squared_norm: float = 0.0


def scale_shared_sum(weights: tuple[float, ...], options: Options) -> float:
    """Returns by what a change that all experts share is multiplied where `SUM_SCALE` multiplies a sum."""
    return 1.0 if options["scale"] is None else options["scale"] * sum(weight > 0 for weight in weights)


def require_change(find_conflict: FindConflict) -> FindConflict:
    """Returns a method's `find_conflict` that finds experts without a ΔW too."""

    def find(groups: Sequence[ParameterGroup], options: Options) -> str | None:
        for group in groups:
            if group.form in FORMS_WITHOUT_DELTA:
                reason = FORMS_WITHOUT_DELTA[group.form]
                return f"it works on ΔW, what an expert changes in the base, and {reason}"
        return find_conflict(groups, options)

    return find


def find_adapter_conflict(groups: Sequence[ParameterGroup], options: Options) -> str | None:
    """Says why changes cannot be merged: adapters have none, and no option says how to merge them."""
    if any(group.form == "adapter" for group in groups) and options.get("adapters") is None:
        return (
            "it works on ΔW, what an expert changes in the base, and adapters are networks of their own "
            "(with option 'adapters', average or concatenate, only norm scales are merged by it)"
        )
    return None


def find_no_matrix(groups: Sequence[ParameterGroup], options: Options) -> str | None:
    """Says why a method on matrices has nothing to merge; None if there is a matrix."""
    del options
    if any(group.form == "adapter" for group in groups) or all(group.form == "vector" for group in groups):
        return (
            "it works on the matrices that experts change in the base, and these experts own none, but "
            "vectors or networks of their own"
        )
    return None


def as_matrices(changes: Sequence[np.ndarray], inputs: MergeInputs) -> list[Matrix | Factors]:
    """Returns the experts' changes of a matrix; those of LoRA as their factors."""
    if inputs.group.form == "lora":
        return [Factors(*map(_as_float32, leaves)) for leaves in inputs.values]
    return list(changes)


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


def write_change(inputs: MergeInputs, change: Tensor | Factors, rank: int | None) -> ChangeLeaves:
    """Returns the leaves that make up a change; `rank` is that of LoRA."""
    form = inputs.group.form
    if isinstance(change, Factors):
        if form == "lora":
            return _write_factors(inputs, change, rank)
        change = _as_float32(change.left @ change.right)
    if form == "lora":
        lora_a, lora_b = lowrank.factor(change, _written_rank(inputs, rank))
        norm = math.fsum(np.square(change, dtype=np.float64).sum(axis=1))
        return ChangeLeaves([lora_a, lora_b], lowrank.squared_error(change, lora_a, lora_b), norm)
    if form == "vector":
        return ChangeLeaves([change + np.float32(1)])
    return ChangeLeaves([change if inputs.base is None else _as_float32(inputs.base) + change])


def _write_factors(inputs: MergeInputs, change: Factors, rank: int | None) -> ChangeLeaves:
    """Returns the leaves of LoRA for a change that is known by factors, of which no product is made."""
    rank = _written_rank(inputs, rank)
    left, sizes, right = lowrank.decompose(change)
    roots = np.zeros(rank)
    roots[: len(sizes)] = np.sqrt(sizes[:rank])
    lora_a, lora_b = np.zeros((len(left), rank)), np.zeros((rank, right.shape[1]))
    lora_a[:, : len(sizes)], lora_b[: len(sizes)] = left[:, :rank], right[:rank]
    squares = np.square(sizes)
    leaves = [_as_float32(lora_a * roots), _as_float32(roots[:, None] * lora_b)]
    return ChangeLeaves(leaves, math.fsum(squares[rank:]), math.fsum(squares))


def _written_rank(inputs: MergeInputs, rank: int | None) -> int:
    lora_a, lora_b = inputs.values[0]
    summed_rank = sum(leaves[0].shape[-1] for leaves in inputs.values)
    return min(rank or summed_rank, len(lora_a), lora_b.shape[-1])


def change_shape(group: ParameterGroup, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Returns the shape of a group's change, layers included, by the shapes of its leaves."""
    return (*shapes[0][:-1], shapes[1][-1]) if group.form == "lora" else shapes[0]


def _as_float32(value: np.ndarray) -> np.ndarray:
    return np.asarray(value, np.float32)
