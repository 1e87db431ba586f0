"""Bottleneck experts in the layout of the `adapters` library, which loads them onto a T5 of transformers.

Adapters follow self-attention and feed-forward, as `DoubleSeqBnConfig` has them. The library has no place for
norms: where an expert has trained them, they go into the base that is written beside.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.models import paths
from elm_jax.records import Params
from elm_jax.weights import safetensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter.safetensors"
# The families that the library knows, and the class of transformers that it puts adapters into.
MODEL_CLASSES: Mapping[str, str] = {"t5": "T5ForConditionalGeneration", "mt5": "MT5ForConditionalGeneration"}
ADAPTER_NAME = "elm"  # of the adapter, by which a model of theirs activates it
LAYOUT_VERSION = "adapters.1.2.0"  # whose layout this is
_LAYERS = {"attention": 0, "self_attention": 0}  # of a block; the feed-forward is the last
_MLP = {"encoder": 1, "decoder": 2}


def save(where: storage.PathLike, tree: Params, *, family: str = "t5") -> None:
    """Writes the adapters of a bottleneck expert, without its norms.

    Args:
        where: The directory to write.
        tree: The expert.
        family: The model_type of transformers that its base has.

    Raises:
        UserError: If the adapters are not all of one width, or the library has no such family.
    """
    if family not in MODEL_CLASSES:
        raise UserError(
            f"Expected a base of type {' or '.join(MODEL_CLASSES)} for the adapters library, got "
            f"{family!r}. Fix: "
            "keep the expert in elm_jax's own format; the library has no other T5."
        )
    directory = storage.writable_directory(where)
    arrays: dict[str, np.ndarray] = {}
    widths: dict[str, int] = {}
    for path, value in paths.flatten(tree).items():
        owner, half, leaf = path.rsplit("/", 2)
        if not owner.endswith("_adapter"):
            continue
        stack, _, block = owner.split("/")
        block = block.removesuffix("_adapter")
        for layer, own in enumerate(np.asarray(value, np.float32)):
            place = _LAYERS.get(block, _MLP[stack])
            name = f"{stack}.block.{layer}.layer.{place}.adapters.{ADAPTER_NAME}.adapter_{half}"
            name += ".0" if half == "down" else ""
            arrays[f"{name}.{'weight' if leaf == 'kernel' else leaf}"] = own.T if leaf == "kernel" else own
        if (half, leaf) == ("down", "bias"):
            widths[owner] = value.shape[1]
    if len(set(widths.values())) != 1:
        raise UserError(
            f"Expected bottlenecks of one width, got {', '.join(map(str, sorted(set(widths.values()))))}. "
            "Fix: the adapters library has one reduction factor; export experts of one width."
        )
    emb_dim = next(array.shape[1] for name, array in arrays.items() if name.endswith("down.0.weight"))
    told = _config(emb_dim, widths.popitem()[1], family)
    safetensors.write(directory / WEIGHTS, arrays, {"format": "pt"})
    storage.write_bytes(directory / CONFIG, (json.dumps(told, indent=2) + "\n").encode())


def select_norms(tree: Params) -> dict[str, Any]:
    """Returns the norm scales that an expert has, by path."""
    return {path: value for path, value in paths.flatten(tree).items() if path.endswith("norm/scale")}


def _config(emb_dim: int, width: int, family: str) -> Mapping[str, Any]:
    """Returns the configuration under which the library computes x + up(gelu(down(x)))."""
    return {
        "config": {
            "mh_adapter": True,
            "output_adapter": True,
            "cross_adapter": False,
            # The library divides and rounds down, which has to give the width back.
            "reduction_factor": emb_dim // width if emb_dim % width == 0 else emb_dim / (width + 0.5),
            "non_linearity": "gelu_new",
            "original_ln_before": False,
            "original_ln_after": True,
            "ln_before": False,
            "ln_after": False,
            "residual_before_ln": True,
            "adapter_residual_before_ln": False,
            "init_weights": "bert",
            "is_parallel": False,
            "scaling": 1.0,
            "use_gating": False,
            "dropout": 0.0,
            "leave_out": [],
            "inv_adapter": None,
            "inv_adapter_reduction_factor": None,
            "phm_layer": False,
        },
        "hidden_size": emb_dim,
        "model_class": MODEL_CLASSES[family],
        "model_name": "",
        "model_type": family,
        "name": ADAPTER_NAME,
        "version": LAYOUT_VERSION,
    }
