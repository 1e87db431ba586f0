"""Paths: nested parameters by path, `encoder/layers/mlp/wo/kernel`, and stacks of layers split by layer.

In memory the layers of a stack share one array, [L, …], below `layers`. In files every layer has its own
tensor below `layers_0`, `layers_1`, …, which are T5X's names.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from elm_jax.errors import UserError
from elm_jax.records import Params

LAYER_STACK = "layers"
_LAYER = re.compile(rf"^(.*\b){LAYER_STACK}_(\d+)(/.*)$")


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
    """Returns the nested parameters of `flatten`'s result."""
    params: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return params


def unstack_layers(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Splits stacks by layer: `encoder/layers/x` of [L, …] becomes `encoder/layers_0/x` … of […].

    >>> sorted(unstack_layers({"encoder/layers/scale": np.ones((2, 3)), "encoder/norm": np.ones(3)}))
    ['encoder/layers_0/scale', 'encoder/layers_1/scale', 'encoder/norm']
    """
    split: dict[str, Any] = {}
    for path, value in flat.items():
        before, found, after = path.partition(f"/{LAYER_STACK}/")
        if not found:
            split[path] = value
            continue
        for layer in range(value.shape[0]):
            split[f"{before}/{LAYER_STACK}_{layer}/{after}"] = value[layer]
    return split


def stack_layers(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Stacks layers again, the inverse of `unstack_layers`.

    Raises:
        UserError: If a layer of a stack is missing.
    """
    together: dict[str, Any] = {}
    stacks: dict[str, dict[int, Any]] = {}
    for path, value in flat.items():
        found = _LAYER.match(path)
        if found:
            before, layer, after = found.groups()
            stacks.setdefault(f"{before}{LAYER_STACK}{after}", {})[int(layer)] = value
        else:
            together[path] = value
    for path, layers in stacks.items():
        missing = [str(layer) for layer in range(max(layers) + 1) if layer not in layers]
        if missing:
            raise UserError(
                f"Expected {path!r} of layers 0 to {max(layers)}, got none of layer "
                f"{', '.join(missing)}. Fix: add what is missing."
            )
        stacked = [layers[layer] for layer in range(len(layers))]
        # NumPy arrays stay NumPy arrays: stacking must not move a large base to the device.
        if isinstance(stacked[0], np.ndarray):
            together[path] = np.stack(stacked)
        else:
            import jax.numpy as jnp  # which is there if its arrays are

            together[path] = jnp.stack(stacked)
    return dict(sorted(together.items()))
