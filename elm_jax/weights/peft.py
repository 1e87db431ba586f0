"""PEFT's adapters for T5, LoRA and (IA)³, as expert trees and back.

PEFT keeps `lora_A` as [R, I] and `lora_B` as [O, R], layer by layer, and multiplies their product by
alpha / r, or alpha / sqrt(r) where it says rslora. An expert has no such factor: it comes multiplied into
`lora_b`, and goes with alpha = r. A layer that PEFT leaves alone gets zeros, or ones where they scale.
"""

import json
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from etils import epath

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.models import paths
from elm_jax.models.sizes import T5Config
from elm_jax.records import Params
from elm_jax.weights import base_model, hf_names, huggingface, peft_fields, safetensors, tensors, torch_bin
from elm_jax.weights.tensors import Tensor

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
KINDS: Mapping[str, str] = {"LORA": "lora", "IA3": "ia3"}
_PREFIX = "base_model.model."
_PART = re.compile(rf"(?:{re.escape(_PREFIX)})?(.+)\.(lora_A|lora_B|ia3_l)(?:\.weight)?")


def load(
    where: storage.PathLike, config: T5Config, *, ignore: Collection[str] = ()
) -> tuple[str, dict[str, Any]]:
    """Returns the kind and the tree, float32, of an adapter for a base of this shape.

    Args:
        where: A directory that PEFT wrote.
        config: The base's shape.
        ignore: Fields of `adapter_config.json` that are not looked at.

    Raises:
        UserError: If a field is not understood, or a tensor is no part of such an expert, is missing or does
            not fit; it is named.
    """
    directory = storage.path(where)
    told = _config(directory, ignore)
    kind = KINDS[told["peft_type"]]
    file = directory / (WEIGHTS if (directory / WEIGHTS).exists() else PICKLED)
    if not file.exists():
        raise UserError(
            f"Expected {WEIGHTS} of a PEFT adapter in {str(directory)!r}, got none. Fix: download it."
        )
    found = huggingface.strip_wrappers(
        (safetensors.list_tensors if file.name == WEIGHTS else torch_bin.list_tensors)(file)
    )
    apart: dict[str, dict[int, dict[str, Tensor]]] = {}
    for name, tensor in found.items():
        part = _PART.fullmatch(name)
        place = hf_names.parse_projection(part.group(1)) if part else None
        if part is None or place is None or part.group(2).startswith("lora") != (kind == "lora"):
            raise UserError(
                f"Expected only tensors of a {told['peft_type']} expert of a T5's projections in "
                f"{str(file)!r}, got {name!r}. Fix: train the adapter without biases, DoRA or other modules."
            )
        stack, layer, block, projection = place
        path = f"{stack}/{paths.STACK}/{block}/{projection}"
        apart.setdefault(path, {}).setdefault(layer, {})[part.group(2)] = tensor
    if not apart:
        raise UserError(f"Expected an adapter in {str(file)!r}, got no tensors. Fix: download it again.")
    flat = {}
    for path, layers in apart.items():
        kernel = base_model.param_shapes(config).get(f"{path}/kernel")
        if kernel is None or max(layers) >= kernel[0]:
            raise UserError(
                f"Expected layers of the base in {str(file)!r}, got layer {max(layers)} of {path!r}. Fix: "
                "name the base that it was trained on."
            )
        flat |= _lora(path, layers, kernel, told) if kind == "lora" else _ia3(path, layers, kernel)
    return kind, paths.unflatten(flat)


def save(where: storage.PathLike, kind: str, tree: Params) -> None:
    """Writes an expert of kind `lora` or `ia3` as an adapter that PEFT loads onto the same base."""
    if kind not in KINDS.values():
        raise UserError(
            f"Expected an expert of kind {' or '.join(KINDS.values())} for PEFT, got {kind!r}. Fix: write "
            "it in another format."
        )
    directory = storage.writable_directory(where)
    arrays, ranks, modules, inner = {}, {}, [], []
    for path, value in paths.flatten(tree).items():
        owner, _, leaf = path.rpartition("/")
        stack, _, block, projection = owner.split("/")
        for layer, own in enumerate(np.asarray(value, np.float32)):
            module = hf_names.module_name(stack, layer, block, projection)
            modules.append(module)
            if leaf in ("lora_a", "lora_b"):
                arrays[f"{_PREFIX}{module}.lora_{leaf[-1].upper()}.weight"] = own.T
                ranks[module] = own.shape[leaf == "lora_a"]
            else:
                arrays[f"{_PREFIX}{module}.ia3_l"] = own[None] if leaf == "ia3_in" else own[:, None]
                inner += [module] if leaf == "ia3_in" else []
    told: dict[str, Any] = {
        "peft_type": "LORA" if kind == "lora" else "IA3",
        "task_type": "SEQ_2_SEQ_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "fan_in_fan_out": False,
        "target_modules": sorted(set(modules)),
    }
    if kind == "lora":
        most = max(ranks.values())
        others = {module: rank for module, rank in sorted(ranks.items()) if rank != most}
        told |= {"r": most, "lora_alpha": most, "lora_dropout": 0.0, "bias": "none"}
        told |= {"rank_pattern": others, "alpha_pattern": others}
    else:
        told["feedforward_modules"] = sorted(inner)
    safetensors.write(directory / WEIGHTS, arrays, {"format": "pt"})
    storage.write_bytes(directory / CONFIG, (json.dumps(told, indent=2) + "\n").encode())


def _config(directory: epath.Path, ignore: Collection[str]) -> dict[str, Any]:
    file = directory / CONFIG
    try:
        told = json.loads(file.read_bytes())
    except OSError:
        raise UserError(
            f"Expected {CONFIG} of a PEFT adapter in {str(directory)!r}, got none. Fix: name another "
            "directory."
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"Expected JSON in {str(file)!r}, got {type(error).__name__}. Fix: download it again."
        ) from None
    kind = told.get("peft_type") if isinstance(told, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(
            f"Expected an adapter of type {' or '.join(KINDS)} in {str(file)!r}, got {kind!r:.50}. Fix: "
            "train one of these."
        )
    peft_fields.TABLES[kind].require_known_fields(told, where=str(file), ignore=ignore)
    alphas = told.setdefault("alpha_pattern", {}) or {}
    told.setdefault("lora_alpha", 8)
    numbers = [told["lora_alpha"], *(alphas.values() if isinstance(alphas, dict) else [alphas])]
    if kind == "LORA" and any(type(alpha) not in (int, float) for alpha in numbers):
        raise UserError(
            f"Expected numbers as lora_alpha and alpha_pattern in {str(file)!r}, got others. Fix: correct "
            "them."
        )
    return told


def _lora(
    path: str, layers: Mapping[int, Mapping[str, Tensor]], kernel: tuple[int, ...], told: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Returns a projection's two stacks; zeros, which change nothing, fill layers of a smaller rank."""
    depth, inputs, outputs = kernel
    ranks = {}
    for layer, parts in layers.items():
        some = next(iter(parts.values()))
        for part in ("lora_A", "lora_B"):
            if part not in parts:
                raise UserError(
                    f"Expected a {part} for {some.name!r} in {some.file!r}, got none. Fix: download it again."
                )
        ranks[layer] = rank = max(1, *parts["lora_A"].shape[:1])
        for part, shape in (("lora_A", (rank, inputs)), ("lora_B", (outputs, rank))):
            _fits(parts[part], shape)
    most = max(ranks.values())
    a, b = np.zeros((depth, inputs, most), np.float32), np.zeros((depth, most, outputs), np.float32)
    stack, _, block, projection = path.split("/")
    for layer, parts in layers.items():
        rank, module = ranks[layer], hf_names.module_name(stack, layer, block, projection)
        parts["lora_A"].read_into(a[layer, :, :rank].T)
        parts["lora_B"].read_into(b[layer, :rank].T)
        b[layer] *= np.float32(_factor(module, rank, told))
    return {f"{path}/lora_a": a, f"{path}/lora_b": b}


def _ia3(
    path: str, layers: Mapping[int, Mapping[str, Tensor]], kernel: tuple[int, ...]
) -> dict[str, np.ndarray]:
    depth, inputs, outputs = kernel
    first = next(iter(layers.values()))["ia3_l"]
    inner = first.shape == (1, inputs)
    scales = np.ones((depth, inputs if inner else outputs), np.float32)
    for layer, parts in layers.items():
        _fits(parts["ia3_l"], (1, inputs) if inner else (outputs, 1))
        parts["ia3_l"].read_into(scales[layer][None] if inner else scales[layer][:, None])
    return {f"{path}/{'ia3_in' if inner else 'ia3_out'}": scales}


def _factor(module: str, rank: int, told: Mapping[str, Any]) -> float:
    """Returns what PEFT multiplies a module's product by; a pattern is a name, or the end of one."""
    alpha = told["lora_alpha"]
    for pattern, own in (told["alpha_pattern"] or {}).items():
        try:
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                alpha = own
                break
        except re.error:
            raise UserError(
                f"Expected names of modules in the alpha_pattern of {CONFIG}, got {pattern!r}. Fix: correct "
                "it."
            ) from None
    return alpha / (math.sqrt(rank) if told.get("use_rslora") else rank)


def _fits(tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise UserError(
            f"Expected {tensor.name!r} in {tensor.file!r} as {shape} for this base, got {tensor.shape}. Fix: "
            "name the base that it was trained on."
        )
    if tensor.dtype not in tensors.FLOATS:
        raise UserError(
            f"Expected {tensor.name!r} in {tensor.file!r} as floating-point numbers, got {tensor.dtype}. "
            "Fix: convert it first."
        )
