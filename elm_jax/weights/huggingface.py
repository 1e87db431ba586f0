"""Hugging Face's checkpoints of T5: safetensors, Flax's msgpack or PyTorch's .bin, whole or in shards."""

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from etils import epath

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.models import paths
from elm_jax.weights import base_model, hf_config, hf_names, msgpack, safetensors, tensors, torch_bin
from elm_jax.weights.base_model import Base, Checkpoint
from elm_jax.weights.tensors import Tensor

SHARD_BYTES = 5 * 10**9  # bytes of one file of weights
SAFETENSORS, FLAX, TORCH = "model.safetensors", "flax_model.msgpack", "pytorch_model.bin"
INDEX_SUFFIX = ".index.json"
_ANCHOR = "encoder.final_layer_norm.weight"  # which every checkpoint of a T5 has
# What lies beside the weights and is carried along as it is: how to generate, and the tokenizer.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "vocab.json", "merges.txt"),
)
OTHER_FILES = (hf_config.GENERATION_CONFIG_FILE, *TOKENIZER_FILES)


def find_weights(directory: epath.Path) -> str | None:
    """Returns the file of weights, or the index of its shards, that is read; None if there is none."""
    for name in (SAFETENSORS, FLAX, TORCH):
        for file in (name, name + INDEX_SUFFIX):
            if (directory / file).exists():
                return file
    return None


def open_checkpoint(
    where: storage.PathLike, *, dtype: str | None = None, ignore: Collection[str] = ()
) -> Checkpoint:
    """Returns what a directory holds, its parameters unread.

    A `lm_head.weight` in the file is the head. Where logits are scaled as well, as transformers does for T5
    1.0 whatever its head, a head equal to the embeddings is tied to them, and another comes scaled.

    Args:
        where: A directory with `config.json` and weights.
        dtype: What the network computes in; what the weights say by default.
        ignore: Fields of `config.json` that are not looked at.

    Raises:
        UserError: If a file is missing or says something that is not understood.
    """
    directory = storage.path(where)
    raw = hf_config.read_config(directory, ignore=ignore)
    file = find_weights(directory)
    if file is None:
        raise UserError(
            f"Expected {SAFETENSORS}, {FLAX} or {TORCH} in {str(directory)!r}, whole or in shards, got none. "
            "Fix: download the weights."
        )
    flax = file.startswith(FLAX)
    found = strip_wrappers(list_tensors(directory, file))
    _require_plain(found)
    name_of = hf_names.flax_name if flax else hf_names.torch_name
    embedding, head_name = _find_embedding(found, flax), name_of("decoder/logits_dense/kernel")
    head, scaled = found.get(head_name), hf_config.has_scaled_outputs(raw)
    if (
        head is not None
        and scaled
        and embedding is not None
        and _are_equal(head, embedding, needs_transpose=flax)
    ):
        del found[head_name]
        head = None
    precision = base_model.choose_compute_dtype(found, dtype)
    config = hf_config.parse_network(
        raw, head=head is not None, dtype=precision, where=str(directory / hf_config.CONFIG_FILE)
    )
    if head is not None and scaled:
        found[head_name] = tensors.scale(head, config.emb_dim**-0.5)
    by_path = {}
    for path, shape in _unstack_shapes(base_model.param_shapes(config)).items():
        tensor = found.pop(name_of(path), None)
        if tensor is not None:
            needs_transpose = hf_names.is_transposed(path, flax=flax) and len(tensor.shape) == len(shape)
            by_path[path] = tensors.transpose(tensor) if needs_transpose else tensor
    # What is left is too many: the check that names it finds it under its own name.
    by_path |= {name: tensor for name, tensor in found.items() if not _is_copy(name)}

    def locate_missing(path: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        return name_of(path), shape[::-1] if hf_names.is_transposed(path, flax=flax) else shape

    return Checkpoint(config, by_path, str(directory / file), locate_missing)


def save(
    where: storage.PathLike, base: Base, *, shard: int = SHARD_BYTES, like: Mapping[str, Any] | None = None
) -> None:
    """Writes a base as safetensors and the `config.json` from which transformers builds the same network.

    Args:
        where: The directory to write.
        base: The model.
        shard: Bytes of one file of weights.
        like: The `config.json` that the model came with, whose token ids and settings of generation are kept.

    Raises:
        UserError: If transformers has no such network, or nothing can be written there.
    """
    directory = storage.writable_directory(where)
    flat = base_model.params_by_layer(base)
    if hf_config.find_model_type(base.config, like) == "umt5":
        flat |= _scale_head(base, flat)
    arrays = {
        hf_names.torch_name(path): leaf.T if hf_names.is_transposed(path) else leaf
        for path, leaf in flat.items()
    }
    dtypes = {leaf.dtype for leaf in arrays.values()}
    dtype = str(dtypes.pop()) if len(dtypes) == 1 else "float32"
    config = hf_config.to_hf_config(base.config, dtype, like)
    shards: list[dict[str, np.ndarray]] = [{}]
    for name, leaf in arrays.items():
        if shards[-1] and sum(each.nbytes for each in shards[-1].values()) + leaf.nbytes > shard:
            shards.append({})
        shards[-1][name] = leaf
    placed = {}
    for number, part in enumerate(shards, start=1):
        name = SAFETENSORS if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        safetensors.write(directory / name, part, {"format": "pt"})
        placed |= dict.fromkeys(part, name)
    if len(shards) > 1:
        total = sum(leaf.nbytes for leaf in arrays.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
        storage.write_bytes(directory / (SAFETENSORS + INDEX_SUFFIX), _to_json_bytes(index))
    storage.write_bytes(directory / hf_config.CONFIG_FILE, _to_json_bytes(config))


def list_tensors(directory: epath.Path, file: str) -> dict[str, Tensor]:
    """Returns the tensors of a file of weights, or of all shards that an index names, without reading them.

    Args:
        directory: Where the file lies.
        file: Its name, as `find_weights` gives it.

    Raises:
        UserError: If a shard or a tensor that an index names is missing, or a file is damaged.
    """
    readers: Mapping[str, Callable[[epath.Path], dict[str, Tensor]]] = {
        SAFETENSORS: safetensors.list_tensors,
        FLAX: lambda where: _require_tensors(paths.flatten(msgpack.list_tensors(where)), where),
        TORCH: torch_bin.list_tensors,
    }
    read = readers[file.removesuffix(INDEX_SUFFIX)]
    if not file.endswith(INDEX_SUFFIX):
        return read(directory / file)
    placed = _read_weight_map(directory / file)
    found: dict[str, Tensor] = {}
    for shard in sorted(set(placed.values())):
        if not (directory / shard).exists():
            raise UserError(
                f"Expected the shard {shard!r} that {str(directory / file)!r} names, got none. Fix: "
                "download it."
            )
        found |= read(directory / shard)
    for name, shard in placed.items():
        if name not in found:
            raise UserError(
                f"Expected {name!r} in {str(directory / shard)!r}, as its index says, got none. Fix: "
                "download it again."
            )
    return found


def _read_weight_map(file: epath.Path) -> dict[str, str]:
    try:
        placed = storage.read_json_value(file, what="An index of weights")["weight_map"]
        if all(isinstance(shard, str) and epath.Path(shard).name == shard for shard in placed.values()):
            return placed
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise UserError(
        f"Expected the file of every tensor in the 'weight_map' of {str(file)!r}, got none. Fix: download it "
        "again."
    )


def _require_tensors(found: Mapping[str, Any], where: epath.Path) -> dict[str, Tensor]:
    for name, leaf in found.items():
        if not isinstance(leaf, Tensor):
            raise UserError(
                f"Expected an array as {name!r} in {str(where)!r}, got {leaf!r:.50}. Fix: download it again."
            )
    return dict(found)


def strip_wrappers(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors by the names that they had before training wrapped their modules.

    Raises:
        UserError: If two tensors then have one name.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in found.items():
        short = hf_names.strip_wrapper(name)
        if short in plain:
            raise UserError(
                f"Expected one tensor for {short!r} in {tensor.file!r}, got {plain[short].name!r} and "
                f"{name!r}. Fix: save the unwrapped model."
            )
        plain[short] = tensor
    return plain


def _require_plain(found: Mapping[str, Tensor]) -> None:
    """Refuses tensors whose names begin with that of a module which holds the model."""
    for name, tensor in found.items():
        prefix, shared, rest = name.rpartition(_ANCHOR)
        if shared and prefix.endswith(".") and not rest:
            raise UserError(
                f"Expected names of a T5's tensors in {tensor.file!r}, such as {_ANCHOR!r}, got "
                f"{tensor.name!r}. "
                f"Fix: save the model without what holds it, so that no name begins with {prefix!r}."
            )


def _find_embedding(found: dict[str, Tensor], flax: bool) -> Tensor | None:
    """Returns the table of embeddings, which some files have under a copy's name too, or alone.

    Encoder and decoder share one table here, so copies must be equal.
    """
    name = hf_names.flax_name("token_embedder/embedding") if flax else hf_names.EMBEDDING
    for copy in hf_names.EMBEDDING_COPIES:
        if copy not in found:
            continue
        if name not in found:
            found[name] = found[copy]
        elif not _are_equal(found[copy], found[name], needs_transpose=False):
            raise UserError(
                f"Expected {copy!r} in {found[copy].file!r} to equal {found[name].name!r}, got other values. "
                "Fix: elm_jax has one table of embeddings for both stacks; use a checkpoint whose tables "
                "are tied."
            )
    return found.get(name)


def _scale_head(base: Base, flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the head for a network of transformers that always divides states by sqrt(d_model)."""
    path = "decoder/logits_dense/kernel"
    if base.config.logits_via_embedding and base.config.scale_decoder_outputs:
        return {}
    head = flat.get(path, flat["token_embedder/embedding"].T)
    return {path: (head.astype(np.float32) * np.float32(base.config.emb_dim**0.5)).astype(head.dtype)}


def _is_copy(name: str) -> bool:
    return name in hf_names.EMBEDDING_COPIES or name == hf_names.UNREAD_TENSOR


def _are_equal(head: Tensor, embedding: Tensor, *, needs_transpose: bool) -> bool:
    if needs_transpose:
        head = tensors.transpose(head)
    return head.network_shape == embedding.shape and head.read().tobytes() == embedding.read().tobytes()


def _unstack_shapes(stacked: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter, layer by layer."""
    apart = {}
    for path, shape in stacked.items():
        before, stack, after = path.partition(f"/{paths.LAYER_STACK}/")
        if not stack:
            apart[path] = shape
        else:
            layers = range(shape[0])
            apart |= {f"{before}/{paths.LAYER_STACK}_{layer}/{after}": shape[1:] for layer in layers}
    return apart


def _to_json_bytes(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
