"""Concatenate: experts side by side in one wider expert, the exact average of what each of them gives.

Of bottlenecks, x + Σ w up(gelu(down x)) is one bottleneck of the summed width: the down-projections and their
biases stand side by side, the up-projections, times their weights, below one another, and the up-biases are
averaged. Of LoRA the factors stand likewise, so that lora_a lora_b is the exact average of ΔW, of the summed
rank (the "cat" of `peft`). Norm scales, which multiply, are averaged, which too is exact for each norm.

Each block's map of the same input is exact. After several blocks the inputs differ from those in the separate
experts, so the whole network's outputs are not the average of theirs. It was compared with no other
implementation; tests hold it against the outputs of the experts themselves.
"""

from collections.abc import Sequence

import numpy as np

from elm_jax.merging.average import average
from elm_jax.merging.changes import FORMS_WITHOUT_DELTA
from elm_jax.merging.method import Options
from elm_jax.merging.parameter_groups import MergeInputs, ParameterGroup, weighted_sum
from elm_jax.merging.registry import register_merge

ADAPTER_LEAVES = ("down/bias", "down/kernel", "up/bias", "up/kernel")


def _find_conflict(groups: Sequence[ParameterGroup], options: Options) -> str | None:
    """Says why experts cannot be concatenated; None if they can."""
    del options
    if any(group.form in FORMS_WITHOUT_DELTA for group in groups):
        return "it puts bottlenecks or LoRA factors side by side, and these experts own other parameters"
    if not any(group.form in ("adapter", "lora") for group in groups):
        return (
            "it puts bottlenecks or LoRA factors side by side, and what these experts own acts linearly, so "
            "that its average already is the exact average of what every block gives"
        )
    for group in groups:
        leaves = tuple(f"{group.path}/{leaf}" for leaf in ADAPTER_LEAVES)
        if group.form == "adapter" and group.leaves != leaves:
            return f"it needs {', '.join(ADAPTER_LEAVES)} in every adapter, and {group.path} has others"
    return None


@register_merge(
    "concatenate",
    works_on="parameters",
    find_conflict=_find_conflict,
    notes={
        "adapter": "Adapters stand side by side: the exact average of what each block gives.",
        "lora": "Factors stand side by side: their product is the exact average of ΔW.",
        "value": "Norm scales were averaged.",
    },
)
def concatenate(inputs: MergeInputs) -> list[np.ndarray]:
    """Experts side by side in a wider one: the exact average of what each block gives.

    Args:
        inputs: One layer of a parameter group.

    Returns:
        The leaves of the wider expert, in float32; forms that cannot be widened are averaged.
    """
    if inputs.group.form == "lora":
        lora_a, lora_b = zip(*inputs.values, strict=True)
        return [_join_columns(lora_a), _join_rows(lora_b, inputs.weights)]
    if inputs.group.form != "adapter":
        return average(inputs)
    down_bias, down, up_bias, up = zip(*inputs.values, strict=True)
    return [
        _join_columns(down_bias),
        _join_columns(down),
        weighted_sum(up_bias, inputs.weights),
        _join_rows(up, inputs.weights),
    ]


def _join_columns(values: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.asarray(value, np.float32) for value in values], axis=-1)


def _join_rows(values: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    return np.concatenate(
        [
            np.asarray(value, np.float32) * weight
            for value, weight in zip(values, np.asarray(weights, np.float32), strict=True)
        ]
    )
