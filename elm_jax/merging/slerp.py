"""SLERP: from one expert towards another along the arc between them (Shoemake 1985).

`sin((1-t)Ω)/sin Ω a + sin(tΩ)/sin Ω b` for each layer's tensor, with Ω the angle between a and b and t the
second's share. Unlike the mean it does not shorten what points apart.

With `of=models` a and b are the experts' whole parameters, as in `mergekit`; with `of=changes` they are what
the experts change in the base. A model of LoRA is its base and a change of low rank, which an arc does not
keep low, so of LoRA there are changes alone.

A mean of more than two on the sphere has no closed form. Experts are therefore added one after another, each
with its share of the weights so far. In general their order matters; for equal arcs it does not. This rule
is ours, and was compared with no other implementation.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from elm_jax.merging.changes import OPTIONS, find_adapter_conflict
from elm_jax.merging.method import MergeOption, Options
from elm_jax.merging.parameter_groups import MergeInputs, ParameterGroup, Tensor
from elm_jax.merging.registry import register_merge

NEARLY_PARALLEL = 0.9995  # above this cosine sin Ω is too small to divide by, and the chord serves


def slerp(first: Tensor, second: Tensor, t: float) -> Tensor:
    """Returns the change at t between two; on the straight line if they are parallel, opposed or zero."""
    size = math.sqrt(_dot(first, first) * _dot(second, second))
    cosine = _dot(first, second) / size if size > 0 else 1.0
    if abs(cosine) > NEARLY_PARALLEL:
        first_share, second_share = 1 - t, t
    else:
        angle = math.acos(cosine)
        first_share = math.sin((1 - t) * angle) / math.sin(angle)
        second_share = math.sin(t * angle) / math.sin(angle)
    return np.float32(first_share) * first + np.float32(second_share) * second


def slerp_all(changes: Iterable[np.ndarray], weights: Sequence[float]) -> Tensor:
    """Returns the changes added one after another, each with its share of the weights so far."""
    merged: np.ndarray | None = None
    summed_weight = 0.0
    for change, weight in zip(changes, weights, strict=True):
        summed_weight += weight
        merged = change if merged is None else slerp(merged, change, weight / summed_weight)
    if merged is None:
        raise ValueError("no changes to merge")
    return np.asarray(merged)


def _dot(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.vdot(first, second))


def _find_conflict(groups: Sequence[ParameterGroup], options: Options) -> str | None:
    if options.get("of") == "models" and any(group.form == "lora" for group in groups):
        return "an arc between models, base and change together, is no LoRA (of=changes is one)"
    return find_adapter_conflict(groups, options)


@register_merge(
    "slerp",
    options={
        **OPTIONS,
        "of": MergeOption(
            str,
            None,
            "between what the arc lies: models or changes; default: changes of LoRA, models of other experts",
            "'models' or 'changes'",
            lambda value: value in ("models", "changes"),
        ),
    },
    symmetric=False,
    find_conflict=_find_conflict,
)
def _merge_slerp(changes: Sequence[np.ndarray], inputs: MergeInputs, *, of: str | None) -> Tensor:
    """Along the arc between two experts; more are added one after another."""
    if inputs.group.form == "lora" or of == "changes":
        return slerp_all(changes, inputs.weights)
    models = [np.asarray(value, np.float32) for (value,) in inputs.values]
    return slerp_all(models, inputs.weights) - (models[0] - changes[0])
