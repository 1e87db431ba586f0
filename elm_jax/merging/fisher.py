"""Fisher: the mean in which each value counts by how much it matters to its expert (Matena & Raffel 2021).

arXiv 2111.09832, equation 4: `Σ w F ΔW / Σ w F`, value by value, F the diagonal of the Fisher information. It
is needed for every parameter group, in the shape of its change; for LoRA that is the gradient by the kernel
itself. The base cancels out.

As in the authors' code each expert's F is divided by its norm over the whole network (`normalize`), and the
first expert, the target, has at least `floor` everywhere (`floor_on=target`), so that it stays where nothing
matters to anybody; with `floor_on=all` every expert has, and such a value is averaged. The floor's value is
theirs too: where most of F is below it, the merge is nearly the target alone, and wants a lower one.

`statistics.estimators` computes the empirical Fisher: the mean squared gradient of the log-likelihood of the
labels that an expert was trained on. The authors take the expectation over labels that the model draws.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from elm_jax.merging.changes import OPTIONS
from elm_jax.merging.method import MergeOption
from elm_jax.merging.parameter_groups import (
    MergeInputs,
    NetworkLayers,
    ParameterGroup,
    Tensor,
    network_of,
    weighted_sum,
)
from elm_jax.merging.registry import register_merge
from elm_jax.statistics.moments import require_squares


def average_by_importance(
    changes: Sequence[np.ndarray], weights: Sequence[float], importance: Sequence[np.ndarray]
) -> Tensor:
    """Returns the mean of the changes, each value by its importance; by weight where nobody has any."""
    summed = weighted_sum(importance, weights)
    matters = summed > 0
    total = np.zeros_like(summed)
    for change, weight, own in zip(changes, weights, importance, strict=True):
        # Divided before it is multiplied: squared gradients are so small that products would vanish.
        share = np.full_like(summed, weight / sum(weights))
        np.divide(np.asarray(own, np.float32) * np.float32(weight), summed, out=share, where=matters)
        total += share * change
    return total


def raise_floor(importance: Sequence[np.ndarray], floor: float, floor_on: str) -> list[np.ndarray]:
    """Returns the experts' importance, of at least `floor` for the first, the target, or for all."""
    return [
        np.maximum(own, np.float32(floor)) if floor_on == "all" or number == 0 else own
        for number, own in enumerate(importance)
    ]


def measure_norms(layers: Iterable[Sequence[np.ndarray]]) -> list[float]:
    """Returns each expert's norm of F over all layers; 1 where F is 0.

    Args:
        layers: Of each layer one F per expert.
    """
    squares = [[float(np.square(own, dtype=np.float64).sum()) for own in layer] for layer in layers]
    return [math.sqrt(math.fsum(own)) or 1.0 for own in zip(*squares, strict=True)]


def _measure_network(layers: NetworkLayers) -> list[float]:
    return measure_norms(inputs.statistics or () for _, inputs in layers())


def _statistics_shape(group: ParameterGroup, shape: tuple[int, ...]) -> tuple[int, ...]:
    del group
    return shape


@register_merge(
    "fisher",
    options={
        **OPTIONS,
        "normalize": MergeOption(
            str,
            "network",
            "what each expert's Fisher is divided by: its norm over the whole network, or nothing (none)",
            "'network' or 'none'",
            lambda value: value in ("network", "none"),
        ),
        "floor": MergeOption(
            float, 1e-6, "least Fisher", "a finite number of at least 0", lambda value: value >= 0
        ),
        "floor_on": MergeOption(
            str,
            "target",
            "whose Fisher has the floor: that of the target, the first expert, or of all",
            "'target' or 'all'",
            lambda value: value in ("target", "all"),
        ),
    },
    symmetric=False,
    needs_base=False,
    statistics_shape=_statistics_shape,
)
def _merge_fisher(
    changes: Sequence[np.ndarray], inputs: MergeInputs, *, normalize: str, floor: float, floor_on: str
) -> Tensor:
    """The mean in which each value counts by its diagonal Fisher information."""
    importance = inputs.statistics or ()
    for expert_id, values in zip(inputs.expert_ids, importance, strict=True):
        require_squares(expert_id, inputs.group.path, values)
    weights = list(inputs.weights)
    if normalize == "network":
        norms = network_of(changes, inputs).measure(_measure_network)
        weights = [weight / norm for weight, norm in zip(weights, norms, strict=True)]
    return average_by_importance(changes, weights, raise_floor(importance, floor, floor_on))
