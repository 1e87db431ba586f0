"""Parameter groups: the tensors of an expert that are merged together, and how they act on the base.

    form     leaves of the group             acts as                             its change ΔW
    value    one, at a path of the base      in place of the base's parameter    value - the base's
    vector   ia3_in or ia3_out               a factor on what passes, 1 for none  vector - 1
    lora     P/lora_a and P/lora_b           a sum onto the kernel of P           lora_a lora_b
    dora     these and P/dora_magnitude      in place of the kernel of P          none that is a dora again
    vera     vera/vera_a, vera/vera_b, or    a sum onto the kernel of P           none that is a vera again
             P/lambda_b and P/lambda_d
    prompt   encoder/prompt/prompt/prompt    tokens before the prompt's           none
    adapter  {block}_adapter/down, …/up      a small network behind a block       none

The layout of the trees is that of `elm_jax.models.expert_layers`. Layers of a stack are merged one by one, as
tensors of their own, which is how papers and other libraries define every method here.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from elm_jax.errors import UserError
from elm_jax.models.expert_kinds import PROMPT, VERA
from elm_jax.models.magnitudes import MAGNITUDE_LEAF as MAGNITUDE

Form = Literal["value", "vector", "lora", "dora", "vera", "prompt", "adapter"]
Tensor = Float[np.ndarray, "..."]


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters of an expert that are merged together.

    Attributes:
        form: How they act on the base.
        path: The base's parameter that they change (`P/kernel` for LoRA), or their own path.
        leaves: Their paths, sorted: lora_a before lora_b, down before up, dora_magnitude first.
        stacked: Whether they have a leading axis of layers.
    """

    form: Form
    path: str
    leaves: tuple[str, ...]
    stacked: bool


@dataclass(frozen=True)
class MergeInputs:
    """What a merge method gets in one call: one layer of a parameter group, for every expert.

    Attributes:
        group: The parameter group.
        layer: The number of the layer; None if the group is not stacked.
        expert_ids: One id per expert.
        weights: One per expert; they sum to 1, unless the method takes them as given.
        values: One tuple per expert, as stored: the group's leaves without the axis of layers.
        base: The base's parameter, for groups of form "value" of a method that needs the base.
        statistics: One array per expert, if the method reads statistics for this group.
        network: All layers of the merge, for a method on changes that looks at the whole network.
    """

    group: ParameterGroup
    layer: int | None
    expert_ids: Sequence[str]
    weights: Sequence[float]
    values: Sequence[tuple[np.ndarray, ...]]
    base: np.ndarray | None = None
    statistics: Sequence[np.ndarray] | None = None
    network: "Network | None" = None


NetworkLayers = Callable[[], Iterable[tuple[Sequence[np.ndarray], MergeInputs]]]
"""Starts a pass over all layers of a merge: `(changes, inputs)` of each, as the method gets them."""


@dataclass(frozen=True)
class Network:
    """All layers that one merge of changes is made of, for methods that measure the whole network first.

    Attributes:
        layers: Starts a pass over all layers.
        measured: What was measured in this merge.
    """

    layers: NetworkLayers
    measured: dict[Any, Any] = field(default_factory=dict)

    def measure(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Returns `function(layers, *arguments)`, which is called once in a merge."""
        if (function, *arguments) not in self.measured:
            self.measured[function, *arguments] = function(self.layers, *arguments)
        return self.measured[function, *arguments]


def network_of(changes: Sequence[np.ndarray], inputs: MergeInputs) -> Network:
    """Returns the network of a merge; where none was given, this layer is all of it."""
    return inputs.network or Network(lambda: [(changes, inputs)])


def is_matrix(inputs: MergeInputs) -> bool:
    """Says whether the change of a group is a matrix: of a kernel, a table of embeddings or of biases."""
    return inputs.group.form == "lora" or (inputs.group.form == "value" and inputs.values[0][0].ndim == 2)


def to_output_rows(group: ParameterGroup, values: Tensor) -> Tensor:
    """Turns a tensor to PyTorch's layout and back: a row is one output unit, and a vector is one row."""
    return values.T if group.path.endswith("/kernel") else values


def scale_to_unit_mean(weights: Sequence[float]) -> list[float]:
    """Returns weights of mean 1, by which terms of a sum are multiplied."""
    return [weight * len(weights) / sum(weights) for weight in weights]


def group_parameters(paths: Iterable[str]) -> tuple[ParameterGroup, ...]:
    """Groups an expert's parameters by what they do together.

    Args:
        paths: The paths of all parameters that the expert owns.

    Returns:
        The groups, sorted by path.

    Raises:
        UserError: If only one of LoRA's two factors is there.

    >>> paths = ["a/q/lora_b", "a/q/lora_a", "a/norm/scale"]
    >>> [(group.form, group.path) for group in group_parameters(paths)]
    [('value', 'a/norm/scale'), ('lora', 'a/q/kernel')]
    """
    together: dict[tuple[str, Form], list[str]] = {}
    every = set(paths)
    for path in sorted(every):
        owner, _, leaf = path.rpartition("/")
        is_dora = leaf in ("lora_a", "lora_b", MAGNITUDE) and f"{owner}/{MAGNITUDE}" in every
        group: tuple[str, Form] = (f"{owner}/kernel", "dora") if is_dora else _assign_group(path)
        together.setdefault(group, []).append(path)
    for (group_path, form), leaves in together.items():
        if form in ("lora", "dora") and len(leaves) != {"lora": 2, "dora": 3}[form]:
            raise UserError(
                f"Expected both lora_a and lora_b at {group_path.removesuffix('/kernel')}, got {leaves[0]!r} "
                "alone. Fix: train or convert the expert again."
            )
    return tuple(
        ParameterGroup(form, group_path, tuple(leaves), "layers" in group_path.split("/"))
        for (group_path, form), leaves in sorted(together.items())
    )


def weighted_sum(values: Iterable[np.ndarray], weights: Sequence[float]) -> Tensor:
    """Returns the sum of values times weights, in float32; only one value is held at a time."""
    total: np.ndarray | None = None
    for value, weight in zip(values, weights, strict=True):
        term = np.asarray(value, np.float32) * np.float32(weight)
        total = term if total is None else np.add(total, term, out=np.asarray(total))
    if total is None:
        raise ValueError("no values to sum")
    return np.asarray(total)


def _assign_group(path: str) -> tuple[str, Form]:
    """Returns the path and the form of the group that a parameter belongs to."""
    *owner, leaf = path.split("/")
    if leaf in ("lora_a", "lora_b"):
        return "/".join([*owner, "kernel"]), "lora"
    if leaf in ("ia3_in", "ia3_out"):
        return path, "vector"
    if leaf in ("lambda_b", "lambda_d"):
        return "/".join([*owner, "kernel"]), "vera"
    if owner == [VERA] or path == PROMPT:
        return path, "prompt" if path == PROMPT else "vera"
    for at, name in enumerate(owner, start=1):
        if name.endswith("_adapter"):
            return "/".join(owner[:at]), "adapter"
    return path, "value"
