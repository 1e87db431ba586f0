"""Paths: the names of parameters, `encoder/layers/mlp/wo/kernel`, and the layers of a stack taken apart.

Inside the package a stack keeps its layers in one array, [L, …], below `layers`; at the file boundary every
layer is a tensor of its own below `layers_0`, `layers_1`, …, which are T5X's names.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from elm_jax.errors import UserError
from elm_jax.records import Params

STACK = "layers"
_LAYER = re.compile(rf"^(.*\b){STACK}_(\d+)(/.*)$")


def flatten(params: Params, prefix: str = "") -> dict[str, Any]:
    """Returns path -> array, in the order of the paths."""
    flat: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}/"))
        else:
            flat[f"{prefix}{name}"] = value
    return dict(sorted(flat.items()))


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    params: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return params


def unstack_layers(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Takes stacks apart: `encoder/layers/x` of [L, …] becomes `encoder/layers_0/x` … of […].

    >>> sorted(unstack_layers({"encoder/layers/scale": np.ones((2, 3)), "encoder/norm": np.ones(3)}))
    ['encoder/layers_0/scale', 'encoder/layers_1/scale', 'encoder/norm']
    """
    apart: dict[str, Any] = {}
    for path, value in flat.items():
        before, found, after = path.partition(f"/{STACK}/")
        if not found:
            apart[path] = value
            continue
        for layer in range(value.shape[0]):
            apart[f"{before}/{STACK}_{layer}/{after}"] = value[layer]
    return apart


def stack_layers(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `unstack_layers`; a layer that is missing in a stack is an error that names it."""
    together: dict[str, Any] = {}
    stacks: dict[str, dict[int, Any]] = {}
    for path, value in flat.items():
        found = _LAYER.match(path)
        if found:
            before, layer, after = found.groups()
            stacks.setdefault(f"{before}{STACK}{after}", {})[int(layer)] = value
        else:
            together[path] = value
    for path, layers in stacks.items():
        missing = [str(layer) for layer in range(max(layers) + 1) if layer not in layers]
        if missing:
            raise UserError(
                f"{path!r} is wanted for layers 0 to {max(layers)}, but layer "
                f"{', '.join(missing)} is missing."
            )
        stacked = [layers[layer] for layer in range(len(layers))]
        # NumPy's stays NumPy's: stacking on the host must not move a large base to the device.
        together[path] = np.stack(stacked) if isinstance(stacked[0], np.ndarray) else jnp.stack(stacked)
    return dict(sorted(together.items()))
