"""PEFT's adapters for T5, LoRA, DoRA, VeRA, (IA)³ and soft prompts, as expert trees and back.

PEFT keeps `lora_A` as [R, I] and `lora_B` as [O, R], layer by layer, and multiplies their product by
alpha / r, or alpha / sqrt(r) where it says rslora. An expert has no such factor: it comes multiplied into
`lora_b`, and goes with alpha = r. A layer that PEFT leaves alone gets zeros, or ones where they scale; one
that DoRA leaves alone has no magnitudes here without the base, and is refused.
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
from elm_jax.models import magnitudes, paths
from elm_jax.models.expert_kinds import PROMPT, VERA
from elm_jax.models.sizes import T5Config
from elm_jax.records import Params
from elm_jax.weights import base_model, hf_names, huggingface, peft_fields, safetensors, tensors, torch_bin
from elm_jax.weights.tensors import Tensor

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
TYPES: Mapping[str, str] = {
    "lora": "LORA",
    "dora": "LORA",
    "ia3": "IA3",
    "vera": "VERA",
    "prompt": "PROMPT_TUNING",
}
"""Kind of expert -> PEFT's type; which of several kinds an adapter is, its fields tell."""
_PREFIX = "base_model.model."
_PART = re.compile(
    rf"(?:{re.escape(_PREFIX)})?(.+)\."
    r"(lora_A|lora_B|lora_magnitude_vector|ia3_l|vera_lambda_d|vera_lambda_b)(?:\.weight)?"
)
_PARTS = {
    "lora": ("lora_A", "lora_B"),
    "dora": ("lora_A", "lora_B", "lora_magnitude_vector"),
    "ia3": ("ia3_l",),
    "vera": ("vera_lambda_d", "vera_lambda_b"),
}
_EMBEDDINGS = "prompt_embeddings"
_PROJECTIONS = {"base_model.vera_A": "vera_a", "base_model.vera_B": "vera_b"}


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
    kinds = {own: kind for kind, own in TYPES.items() if kind != "dora"}
    kind = "dora" if told.get("use_dora") else kinds[told["peft_type"]]
    file = directory / (WEIGHTS if (directory / WEIGHTS).exists() else PICKLED)
    if not file.exists():
        raise UserError(
            f"Expected {WEIGHTS} of a PEFT adapter in {str(directory)!r}, got none. Fix: download it."
        )
    found = huggingface.strip_wrappers(
        (safetensors.list_tensors if file.name == WEIGHTS else torch_bin.list_tensors)(file)
    )
    if kind == "prompt":
        return kind, _load_prompt(found, config, told, file=str(file))
    flat = _load_projections(found, told, file=str(file)) if kind == "vera" else {}
    apart: dict[str, dict[int, dict[str, Tensor]]] = {}
    for name, tensor in found.items():
        part = _PART.fullmatch(name)
        place = hf_names.parse_projection(part.group(1)) if part else None
        if part is None or place is None or part.group(2) not in _PARTS[kind]:
            raise UserError(
                f"Expected only tensors of a {told['peft_type']} expert of a T5's projections in "
                f"{str(file)!r}, got {name!r}. Fix: train the adapter without biases or other modules."
            )
        stack, layer, block, projection = place
        path = f"{stack}/{paths.LAYER_STACK}/{block}/{projection}"
        apart.setdefault(path, {}).setdefault(layer, {})[part.group(2)] = tensor
    if not apart:
        raise UserError(f"Expected an adapter in {str(file)!r}, got no tensors. Fix: download it again.")
    for path, layers in apart.items():
        kernel = base_model.param_shapes(config).get(f"{path}/kernel")
        if kernel is None or max(layers) >= kernel[0]:
            raise UserError(
                f"Expected layers of the base in {str(file)!r}, got layer {max(layers)} of {path!r}. Fix: "
                "name the base that it was trained on."
            )
        if kind == "ia3":
            flat |= _ia3(path, layers, kernel)
        elif kind == "vera":
            flat |= _vera(path, layers, kernel, flat[f"{VERA}/vera_a"].shape[1])
        else:
            flat |= _lora(path, layers, kernel, told)
        if kind == "dora":
            flat |= _magnitudes(path, layers, kernel)
    return kind, paths.unflatten(flat)


def save(where: storage.PathLike, kind: str, tree: Params) -> None:
    """Writes an expert of a kind in `TYPES` as an adapter that PEFT loads onto the same base."""
    if kind not in TYPES:
        raise UserError(
            f"Expected an expert of kind {' or '.join(TYPES)} for PEFT, got {kind!r}. Fix: write it in "
            "another format."
        )
    directory = storage.writable_directory(where)
    arrays, ranks, modules, inner = {}, {}, [], []
    for path, value in paths.flatten(tree).items():
        owner, _, leaf = path.rpartition("/")
        if path == PROMPT:
            vectors = np.asarray(value, np.float32)
            arrays[_EMBEDDINGS] = vectors[vectors.any(axis=1)]  # to PEFT zeros are tokens too
            continue
        if owner == VERA:
            name = next(name for name, own in _PROJECTIONS.items() if own == leaf)
            arrays[name] = np.asarray(value, np.float32).T
            continue
        stack, _, block, projection = owner.split("/")
        for layer, own in enumerate(np.asarray(value, np.float32)):
            module = hf_names.module_name(stack, layer, block, projection)
            modules.append(module)
            if leaf in ("lora_a", "lora_b"):
                arrays[f"{_PREFIX}{module}.lora_{leaf[-1].upper()}.weight"] = own.T
                ranks[module] = own.shape[leaf == "lora_a"]
            elif leaf == magnitudes.MAGNITUDE_LEAF:
                arrays[f"{_PREFIX}{module}.lora_magnitude_vector"] = own
            elif leaf in ("lambda_d", "lambda_b"):
                arrays[f"{_PREFIX}{module}.vera_{leaf}"] = own
            else:
                arrays[f"{_PREFIX}{module}.ia3_l"] = own[None] if leaf == "ia3_in" else own[:, None]
                inner += [module] if leaf == "ia3_in" else []
    told: dict[str, Any] = {
        "peft_type": TYPES[kind],
        "task_type": "SEQ_2_SEQ_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
    }
    if kind == "prompt":
        tokens, width = arrays[_EMBEDDINGS].shape
        told |= {"num_virtual_tokens": tokens, "token_dim": width, "num_transformer_submodules": 1}
    else:
        told |= {"fan_in_fan_out": False, "target_modules": sorted(set(modules))}
    if kind == "vera":
        told |= {"r": arrays["base_model.vera_A"].shape[0], "save_projection": True, "bias": "none"}
    elif kind in ("lora", "dora"):
        most = max(ranks.values())
        others = {module: rank for module, rank in sorted(ranks.items()) if rank != most}
        told |= {"r": most, "lora_alpha": most, "lora_dropout": 0.0, "bias": "none"}
        told |= {"rank_pattern": others, "alpha_pattern": others, "use_dora": kind == "dora"}
    elif kind == "ia3":
        told["feedforward_modules"] = sorted(inner)
    safetensors.write(directory / WEIGHTS, arrays, {"format": "pt"})
    storage.write_bytes(directory / CONFIG, (json.dumps(told, indent=2) + "\n").encode())


def _config(directory: epath.Path, ignore: Collection[str]) -> dict[str, Any]:
    file = directory / CONFIG
    if not file.exists():
        raise UserError(
            f"Expected {CONFIG} of a PEFT adapter in {str(directory)!r}, got none. Fix: name another "
            "directory."
        )
    told = storage.read_json_value(file, what="The configuration of a PEFT adapter")
    kind = told.get("peft_type") if isinstance(told, dict) else None
    if not isinstance(kind, str) or kind not in peft_fields.FIELDS_BY_TYPE:
        raise UserError(
            f"Expected an adapter of type {' or '.join(peft_fields.FIELDS_BY_TYPE)} in {str(file)!r}, got "
            f"{kind!r:.50}. Fix: train one of these."
        )
    peft_fields.FIELDS_BY_TYPE[kind].require_known_fields(told, where=str(file), ignore=ignore)
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


def _load_prompt(
    found: Mapping[str, Tensor], config: T5Config, told: Mapping[str, Any], *, file: str
) -> dict[str, Any]:
    """Returns a soft prompt. What PEFT keeps of one for a decoder too, it does not use."""
    if set(found) != {_EMBEDDINGS}:
        raise UserError(
            f"Expected {_EMBEDDINGS} alone in {file!r}, got {', '.join(sorted(found))[:200] or 'nothing'}. "
            "Fix: train the adapter without other modules."
        )
    tensor = found[_EMBEDDINGS]
    _fits(tensor, (*tensor.shape[:1], config.emb_dim))
    vectors = np.empty(tensor.shape, np.float32)
    tensor.read_into(vectors)
    count = told.get("num_virtual_tokens")
    return paths.unflatten({PROMPT: vectors[:count] if isinstance(count, int) else vectors})


def _load_projections(
    found: dict[str, Tensor], told: Mapping[str, Any], *, file: str
) -> dict[str, np.ndarray]:
    """Takes the matrices that all modules share out of the tensors, and returns them."""
    flat = {}
    for name, leaf in _PROJECTIONS.items():
        tensor = found.pop(name, None)
        if tensor is None or len(tensor.shape) != 2:
            raise UserError(
                f"Expected {name}, the matrix that all modules share, in {file!r}, got none. Fix: save the "
                "adapter with save_projection=True."
            )
        matrix = np.empty(tensor.shape, np.float32)
        tensor.read_into(matrix)
        flat[f"{VERA}/{leaf}"] = np.ascontiguousarray(matrix.T)
    ranks = {flat[f"{VERA}/vera_a"].shape[1], flat[f"{VERA}/vera_b"].shape[0], told.get("r", 256)}
    if len(ranks) != 1:
        raise UserError(
            f"Expected matrices of one rank in {file!r}, got {', '.join(sorted(map(str, ranks)))}. Fix: "
            "download it again."
        )
    return flat


def _vera(
    path: str, layers: Mapping[int, Mapping[str, Tensor]], kernel: tuple[int, ...], rank: int
) -> dict[str, np.ndarray]:
    """Returns a projection's vectors; zeros, which change nothing, in a layer without."""
    depth, _, outputs = kernel
    flat = {f"{path}/lambda_d": np.zeros((depth, rank), np.float32)}
    flat[f"{path}/lambda_b"] = np.zeros((depth, outputs), np.float32)
    for layer, parts in layers.items():
        for leaf, size in (("lambda_d", rank), ("lambda_b", outputs)):
            tensor = parts.get(f"vera_{leaf}")
            if tensor is None:
                some = next(iter(parts.values()))
                raise UserError(
                    f"Expected a vera_{leaf} for {some.name!r} in {some.file!r}, got none. Fix: download it "
                    "again."
                )
            _fits(tensor, (size,))
            tensor.read_into(flat[f"{path}/{leaf}"][layer])
    return flat


def _magnitudes(
    path: str, layers: Mapping[int, Mapping[str, Tensor]], kernel: tuple[int, ...]
) -> dict[str, np.ndarray]:
    depth, _, outputs = kernel
    found = np.zeros((depth, outputs), np.float32)
    for layer in range(depth):
        parts = layers.get(layer, {})
        if "lora_magnitude_vector" not in parts:
            raise UserError(
                f"Expected a lora_magnitude_vector in every layer of {path!r}, got none in layer {layer}. "
                "Fix: train the adapter on all layers of a stack."
            )
        _fits(parts["lora_magnitude_vector"], (outputs,))
        parts["lora_magnitude_vector"].read_into(found[layer])
    return {f"{path}/{magnitudes.MAGNITUDE_LEAF}": found}


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
