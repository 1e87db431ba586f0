"""Hugging Face's files of BERT, RoBERTa and MPNet, as the shape and the parameters of `models.bert_encoder`.

PyTorch keeps a projection as [out, in] and queries, keys and values apart; the network has [in, out], and the
three in one.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from elm_jax.errors import UserError
from elm_jax.models import bert_encoder, paths
from elm_jax.models.bert_encoder import BertConfig
from elm_jax.weights import tensors

MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "mpnet")
_SIZE_FIELDS = {
    "vocab_size": "vocab_size",
    "emb_dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_layers": "num_hidden_layers",
    "mlp_dim": "intermediate_size",
    "positions": "max_position_embeddings",
}
_BERT_NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention/out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp/wi": "intermediate.dense",
    "mlp/wo": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
_MPNET_NAMES = {
    **_BERT_NAMES,
    "query": "attention.attn.q",
    "key": "attention.attn.k",
    "value": "attention.attn.v",
    "attention/out": "attention.attn.o",
    "attention_norm": "attention.LayerNorm",
}


def parse_network(raw: Mapping[str, Any], *, dtype: str, where: str) -> BertConfig:
    """Returns the shape that a `config.json` describes; a UserError names what cannot be."""
    sizes = {}
    for name, theirs in _SIZE_FIELDS.items():
        sizes[name] = raw.get(theirs)
        if type(sizes[name]) is not int or not 0 < sizes[name] < 2**31:
            raise UserError(
                f"Expected a positive {theirs!r} in {where!r}, got {sizes[name]!r:.50}. Fix: download it "
                "again."
            )
    if sizes["emb_dim"] % sizes["num_heads"]:
        raise UserError(
            f"Expected a hidden_size in {where!r} that its {sizes['num_heads']} heads divide, got "
            f"{sizes['emb_dim']}. Fix: download it again."
        )
    activation = raw.get("hidden_act", "gelu")
    if activation not in bert_encoder.ACTIVATIONS:
        raise UserError(
            f"Expected a hidden_act of {', '.join(bert_encoder.ACTIVATIONS)} in {where!r}, got "
            f"{activation!r:.50}. Fix: use another encoder."
        )
    positions = raw.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise UserError(
            f"Expected absolute positions in {where!r}, got {positions!r:.50}. Fix: use another encoder."
        )
    kind = raw["model_type"]
    return BertConfig(
        **sizes,
        activation=activation,
        norm_epsilon=float(raw.get("layer_norm_eps", 1e-12)),
        # MPNet's is 1 whatever its configuration says, as transformers has it.
        pad={"bert": None, "mpnet": 1}.get(kind, raw.get("pad_token_id", 1)),
        relpos_buckets=int(raw.get("relative_attention_num_buckets", 32)) if kind == "mpnet" else 0,
        dtype=dtype,
    )


def convert_params(
    config: BertConfig, found: Mapping[str, np.ndarray], kind: str, *, where: str
) -> dict[str, np.ndarray]:
    """Returns the network's float32 parameters by path.

    Args:
        config: The network.
        found: Tensors by PyTorch's names, which may have a head's prefix (`bert.`); others are left alone.
        kind: The model_type of transformers.
        where: What errors call the file.

    Raises:
        UserError: If a tensor is missing or of another shape; it is named.
    """
    family = kind.removeprefix("xlm-")
    found = {name.removeprefix(f"{family}."): array for name, array in found.items()}
    names = _MPNET_NAMES if kind == "mpnet" else _BERT_NAMES
    width = config.emb_dim

    def get(name: str, *shape: int | None) -> np.ndarray:
        return get_tensor(found, name, shape, where=where)

    def dense(name: str, fan_in: int, fan_out: int) -> tuple[np.ndarray, np.ndarray]:
        return get(f"{name}.weight", fan_out, fan_in).T, get(f"{name}.bias", fan_out)

    position = get("embeddings.position_embeddings.weight", config.positions, width)
    if kind != "mpnet":
        position = position + get("embeddings.token_type_embeddings.weight", None, width)[:1]
    made: dict[str, Any] = {
        "embedder/token": get("embeddings.word_embeddings.weight", config.vocab_size, width),
        "embedder/position": position,
        "embedder/norm/scale": get("embeddings.LayerNorm.weight", width),
        "embedder/norm/bias": get("embeddings.LayerNorm.bias", width),
    }
    if config.relpos_buckets:
        shape = (config.relpos_buckets, config.num_heads)
        made["relpos"] = get("encoder.relative_attention_bias.weight", *shape)
    for layer in range(config.num_layers):
        own = {path: f"encoder.layer.{layer}.{name}" for path, name in names.items()}
        kernels, biases = zip(
            *(dense(own[part], width, width) for part in ("query", "key", "value")), strict=True
        )
        pairs = {
            "attention/qkv": (np.concatenate(kernels, axis=1), np.concatenate(biases)),
            "attention/out": dense(own["attention/out"], width, width),
            "mlp/wi": dense(own["mlp/wi"], width, config.mlp_dim),
            "mlp/wo": dense(own["mlp/wo"], config.mlp_dim, width),
        }
        for path, (kernel, bias) in pairs.items():
            made[f"{paths.LAYER_STACK}_{layer}/{path}/kernel"] = kernel
            made[f"{paths.LAYER_STACK}_{layer}/{path}/bias"] = bias
        for path in ("attention_norm", "mlp_norm"):
            made[f"{paths.LAYER_STACK}_{layer}/{path}/scale"] = get(f"{own[path]}.weight", width)
            made[f"{paths.LAYER_STACK}_{layer}/{path}/bias"] = get(f"{own[path]}.bias", width)
    return paths.stack_layers(made)


def get_tensor(
    found: Mapping[str, np.ndarray], name: str, shape: tuple[int | None, ...], *, where: str
) -> np.ndarray:
    """Returns a tensor as float32.

    Args:
        found: Name -> tensor.
        name: Its name.
        shape: Its shape; None stands for any size.
        where: What errors call the file.

    Raises:
        UserError: If it is missing, of another shape, or holds other numbers than floating-point ones.
    """
    wanted = tuple("any" if size is None else size for size in shape)
    if name not in found:
        raise UserError(
            f"Expected {name!r} of shape {wanted} in {where!r}, got none. Fix: download it again."
        )
    array = found[name]
    if len(array.shape) != len(shape) or any(
        size not in (None, own) for size, own in zip(shape, array.shape, strict=True)
    ):
        raise UserError(
            f"Expected {name!r} in {where!r} as {wanted}, got {array.shape}. Fix: download it again."
        )
    if array.dtype not in tensors.FLOATS:
        raise UserError(
            f"Expected {name!r} in {where!r} as floating-point numbers, got {array.dtype}. Fix: convert it "
            "first."
        )
    return array.astype(np.float32, copy=False)
