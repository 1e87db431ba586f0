"""Folding: a base with an expert multiplied in, where the result is a base that computes the same."""

from typing import Any

import numpy as np

from elm_jax.errors import UserError
from elm_jax.models import magnitudes, paths
from elm_jax.models.expert_kinds import PROMPT, VERA
from elm_jax.records import Params
from elm_jax.weights import base_model
from elm_jax.weights.base_model import Base


def fold_expert(base: Base, kind: str, tree: Params) -> Base:
    """Returns the base, in float32, whose own parameters do what the expert does beside them.

    Products are float32: what is folded differs from what stands beside by rounding alone. The parameters of
    a bfloat16 base have the same values in float32.

    Args:
        base: The base that the expert was trained on.
        kind: The expert's kind.
        tree: The expert.

    Raises:
        UserError: If no base without experts computes the same, as with a bottleneck, which adds layers.
    """
    flat: dict[str, Any] = {
        path: np.asarray(value).astype(np.float32) for path, value in paths.flatten(base.params).items()
    }
    owned = {path: np.asarray(value, np.float32) for path, value in paths.flatten(tree).items()}
    for path in owned:
        if path.startswith(f"{VERA}/"):
            continue
        if path in flat:
            flat[path] = owned[path]
            continue
        owner, _, leaf = path.rpartition("/")
        kernel = f"{owner}/kernel"
        if leaf == "lora_a":
            flat[kernel] = flat[kernel] + np.matmul(owned[path], owned[f"{owner}/lora_b"])
            if f"{owner}/{magnitudes.MAGNITUDE_LEAF}" in owned:
                norms = np.linalg.norm(flat[kernel], axis=1)
                flat[kernel] *= (owned[f"{owner}/{magnitudes.MAGNITUDE_LEAF}"] / norms)[:, None, :]
        elif leaf == "lambda_d":
            inner, outer = owned[f"{VERA}/vera_a"], owned[f"{VERA}/vera_b"]
            _, inputs, outputs = flat[kernel].shape
            left = inner[None, :inputs] * owned[path][:, None, :]
            flat[kernel] = flat[kernel] + (left @ outer[:, :outputs]) * owned[f"{owner}/lambda_b"][:, None, :]
        elif leaf == "ia3_out":
            flat[kernel] = flat[kernel] * owned[path][:, None, :]
        elif leaf == "ia3_in":
            flat[kernel] = flat[kernel] * owned[path][:, :, None]
        elif leaf not in ("lora_b", "lambda_b", magnitudes.MAGNITUDE_LEAF):
            other = "with --to peft" if path == PROMPT else "with --to adapters"
            raise UserError(
                f"Expected an expert that a base can have folded in, got one of kind {kind!r}, whose "
                f"{path!r} is a layer of its own. Fix: write it {other}, or keep it beside its base."
            )
    return base_model.make_base(base.config, paths.unflatten(flat))
