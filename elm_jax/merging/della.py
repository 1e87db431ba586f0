"""DELLA: changes dropped at random, small ones more often, then merged by sign (Deep et al., 2406.11617).

MagPrune: in every row of ΔW, one output unit, the n values are ranked by magnitude, from 0 for the smallest;
a value is kept with probability `density - window/2 + window · rank/(n-1)` and divided by it. Then the sign
of the weighted sum is elected and the mean taken of the values that have it, as `ties.elect_signs` does. The
result is multiplied by λ, `scale`. A row of one value keeps it with probability `density`.

With `rescale=l1`, as in `mergekit`, a tensor is not divided by the probabilities but multiplied so that its
absolute values have their old sum. The defaults are those of the authors' example, but for its λ of 1.1.

The draws are those of `dare`: they depend on the seed, the expert's id and the tensor.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from elm_jax.merging.changes import OPTIONS, SCALE, find_adapter_conflict
from elm_jax.merging.dare import SEED, draw_numbers
from elm_jax.merging.method import MergeOption, Options
from elm_jax.merging.parameter_groups import MergeInputs, ParameterGroup, Tensor, to_output_rows
from elm_jax.merging.registry import register_merge
from elm_jax.merging.ties import elect_signs


def keep_probability(
    change: Float[np.ndarray, "*rows N"], density: float, window: float
) -> Float[np.ndarray, "*rows N"]:
    """Returns with what probability each value is kept, by the rank of its magnitude in its row.

    Of equal magnitudes the first one ranks lowest.
    """
    count = change.shape[-1]
    ranks = np.abs(change).argsort(axis=-1, kind="stable").argsort(axis=-1, kind="stable")
    share = ranks / (count - 1) if count > 1 else np.full(change.shape, 0.5)
    return (density + window * (share - 0.5)).astype(np.float32)


def prune(
    change: Float[np.ndarray, "*shape"],
    probability: Float[np.ndarray, "*shape"],
    draws: Float[np.ndarray, "*shape"],
    rescale: str = "probability",
) -> Float[np.ndarray, "*shape"]:
    """Returns the values whose draw is below their probability, enlarged, and zeros for the others."""
    kept = np.where(draws < probability, change, np.float32(0))
    if rescale == "probability":
        return kept / probability
    left = np.abs(kept).sum(dtype=np.float64)
    return kept * np.float32(np.abs(change).sum(dtype=np.float64) / left) if left > 0 else kept


def _find_conflict(groups: Sequence[ParameterGroup], options: Options) -> str | None:
    density, window = options.get("density", 1.0), options.get("window", 0.0)
    if not (window / 2 < density and density + window / 2 <= 1):
        return f"probabilities of {density} ± {window} / 2 are not all above 0 and at most 1"
    return find_adapter_conflict(groups, options)


@register_merge(
    "della",
    options={
        **OPTIONS,
        "density": MergeOption(
            float,
            0.7,
            "mean probability of keeping a value",
            "a share above 0 and at most 1",
            lambda value: 0 < value <= 1,
        ),
        "window": MergeOption(
            float,
            0.14,
            "by how much the largest value of a row is likelier kept than the smallest",
            "a number from 0 to 1",
            lambda value: 0 <= value <= 1,
        ),
        "rescale": MergeOption(
            str,
            "probability",
            "how what is left is enlarged: by each value's probability, or to the tensor's old l1 norm",
            "'probability' or 'l1'",
            lambda value: value in ("probability", "l1"),
        ),
        "seed": SEED,
        "scale": SCALE,
    },
    find_conflict=_find_conflict,
    shared_factor=lambda weights, options: options["scale"],
)
def _merge_della(
    changes: Sequence[np.ndarray],
    inputs: MergeInputs,
    *,
    density: float,
    window: float,
    rescale: str,
    seed: int,
    scale: float,
) -> Tensor:
    """Changes dropped at random, small ones more often, then merged by elected signs."""

    def prune_one(change: np.ndarray, expert_id: str) -> np.ndarray:
        rows = to_output_rows(inputs.group, change)
        draws = draw_numbers(rows.shape, seed, expert_id, inputs.group.path, inputs.layer)
        return to_output_rows(
            inputs.group, prune(rows, keep_probability(rows, density, window), draws, rescale)
        )

    pruned = map(prune_one, changes, inputs.expert_ids)
    return np.float32(scale) * elect_signs(pruned, inputs.weights)
