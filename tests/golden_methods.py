"""The package's methods as functions of the arrays that the authors' own code was run on.

`FUNCTIONS` maps a file's name, without .npz, to a function from its inputs and options to its outputs. Each
only turns the arrays into the package's layout and back: PyTorch's weights are [out, in], kernels here are
[in, out], LoRA's A is [r, in] there and lora_a [in, r] here.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from elm_jax.merging.dare import drop_values
from elm_jax.merging.parameter_groups import weighted_sum
from elm_jax.merging.task_arithmetic import task_arithmetic

Arrays = dict[str, Any]


def numbered(inputs: Arrays, stem: str) -> list[np.ndarray]:
    """Returns the arrays called `stem` with a number, in the order of their numbers."""
    count = sum(name.startswith(stem) and name.removeprefix(stem).isdigit() for name in inputs)
    return [inputs[f"{stem}{number}"] for number in range(count)]


def merging_average(inputs: Arrays) -> Arrays:
    params = inputs["params"]
    return {"merged": weighted_sum(params, [1 / len(params)] * len(params))}


def merging_dare(inputs: Arrays) -> Arrays:
    density = 1 - float(inputs["drop_rate"])
    pairs = zip(inputs["deltas"], inputs["drop_mask"] == 0, strict=True)
    return {"deltas": np.stack([drop_values(delta, density, kept) for delta, kept in pairs])}


def merging_task_arithmetic(inputs: Arrays) -> Arrays:
    base, changes = inputs["base"], list(inputs["experts"] - inputs["base"])
    return {"merged": base + task_arithmetic(changes, [1.0] * len(changes), float(inputs["scaling"]))}


FUNCTIONS: dict[str, Callable[[Arrays], Arrays]] = {
    "merging_average": merging_average,
    "merging_dare": merging_dare,
    "merging_task_arithmetic": merging_task_arithmetic,
}
