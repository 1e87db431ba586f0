"""`config.json` of Hugging Face's T5, as the shape of a network and back.

`scale_decoder_outputs` says whether logits are divided by sqrt(d_model), as those of T5 1.0 are. Before
transformers 5 `tie_word_embeddings` said so; since then that is true in every file, whatever the model. Which
head there is, is for the weights to say: one in the file is the head.
"""

from collections.abc import Collection, Mapping
from typing import Any

from etils import epath

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.models.sizes import T5Config
from elm_jax.weights import base_model, hf_fields
from elm_jax.weights.fields import FieldTable

CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"
# The class of transformers for each model_type that is read.
ARCHITECTURES: Mapping[str, str] = {
    "t5": "T5ForConditionalGeneration",
    "mt5": "MT5ForConditionalGeneration",
    "umt5": "UMT5ForConditionalGeneration",
}
# Relatives whose network is another, and why.
OTHER_FAMILIES: Mapping[str, str] = {
    "longt5": "LongT5 attends to a window or to blocks of the prompt",
    "switch_transformers": "Switch Transformers route every token to one of many feed-forward layers",
    "t5gemma": "T5Gemma is made of Gemma's layers",
    "t5gemma2": "T5Gemma is made of Gemma's layers",
    "myt5": "MyT5 reads rewritten bytes",
}
_SIZE_FIELDS = {
    "vocab_size": "vocab_size",
    "emb_dim": "d_model",
    "num_heads": "num_heads",
    "num_encoder_layers": "num_layers",
    "num_decoder_layers": "num_decoder_layers",
    "head_dim": "d_kv",
    "mlp_dim": "d_ff",
    "relpos_buckets": "relative_attention_num_buckets",
    "relpos_max_distance": "relative_attention_max_distance",
    "dropout_rate": "dropout_rate",
    "norm_epsilon": "layer_norm_epsilon",
}
# Those without which a shape would be a guess.
_REQUIRED_FIELDS = ("vocab_size", "d_model", "num_heads", "num_layers", "d_kv", "d_ff")
# What the name of an activation means; for gated-gelu transformers takes the tanh form.
_ACTIVATION_NAMES: Mapping[str, str] = {
    "relu": "relu",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "silu": "silu",
    "swish": "silu",
}
_FEED_FORWARDS: dict[str, tuple[str, ...]] = {
    **{name: (function,) for name, function in _ACTIVATION_NAMES.items()},
    "gated-gelu": ("gelu", "linear"),
    **{f"gated-{name}": (function, "linear") for name, function in _ACTIVATION_NAMES.items()},
}


def read_config(
    directory: epath.Path, *, ignore: Collection[str] = (), table: FieldTable = hf_fields.T5_FIELDS
) -> dict[str, Any]:
    """Returns the configuration of a T5, mT5 or umT5.

    Args:
        directory: Where `config.json` lies.
        ignore: Fields that are not looked at.
        table: What the fields mean.

    Raises:
        UserError: If it is another model's, lacks a size, or has a field that changes what the network
            computes and is not understood.
    """
    file = directory / CONFIG_FILE
    raw = _read_object(file)
    family = raw.get("model_type")
    if family not in ARCHITECTURES:
        other = OTHER_FAMILIES.get(str(family), "elm_jax has no other network")
        raise UserError(
            f"Expected {str(file)!r} to describe a model of type {', '.join(ARCHITECTURES)}, got "
            f"{family!r:.50}. Fix: use a T5, mT5, ByT5, UL2 or umT5 ({other})."
        )
    for name in _REQUIRED_FIELDS:
        if raw.get(name) is None:
            raise UserError(f"Expected {name!r} in {str(file)!r}, got none. Fix: download it again.")
    table.require_known_fields(raw, where=str(file), ignore=ignore)
    beside = directory / GENERATION_CONFIG_FILE
    start = _read_object(beside).get("decoder_start_token_id") if beside.exists() else None
    if "decoder_start_token_id" not in ignore:
        table.require_known_fields({"decoder_start_token_id": start}, where=str(beside))
    return raw


def parse_network(raw: Mapping[str, Any], *, head: bool, dtype: str, where: str) -> T5Config:
    """Returns the shape that a configuration describes, for weights with a head of their own or without."""
    feed_forward = raw.get("feed_forward_proj", "relu" if raw["model_type"] == "t5" else "gated-gelu")
    if not isinstance(feed_forward, str) or feed_forward not in _FEED_FORWARDS:
        raise UserError(
            f"Expected a feed_forward_proj of {', '.join(_FEED_FORWARDS)} in {where!r}, got "
            f"{feed_forward!r:.50}. Fix: use another model."
        )
    _require_derived(raw, feed_forward, where)
    fields = {ours: raw[theirs] for ours, theirs in _SIZE_FIELDS.items() if raw.get(theirs) is not None}
    fields.setdefault("num_decoder_layers", raw["num_layers"])
    fields |= {"mlp_activations": _FEED_FORWARDS[feed_forward], "dtype": dtype}
    fields["relpos_per_layer"] = raw["model_type"] == "umt5"
    if not (head or has_own_head(raw)):
        fields |= {"logits_via_embedding": True, "scale_decoder_outputs": has_scaled_outputs(raw)}
    return base_model.parse_config(fields, where=where, names_in_file=_SIZE_FIELDS)


def has_scaled_outputs(raw: Mapping[str, Any]) -> bool:
    """Says whether logits are divided by sqrt(d_model).

    mT5's never are, whatever the file says. umT5's are where the head is tied; since version 5 transformers
    says so in every file.
    """
    if raw["model_type"] == "mt5":
        return False
    tied = raw.get("tie_word_embeddings") is not False
    return tied if raw["model_type"] == "umt5" else bool(raw.get("scale_decoder_outputs", tied))


def has_own_head(raw: Mapping[str, Any]) -> bool:
    """Says whether the weights must have a head, as transformers 4 has it of untied embeddings."""
    return raw.get("tie_word_embeddings") is False and "scale_decoder_outputs" not in raw


def find_model_type(config: T5Config, like: Mapping[str, Any] | None = None) -> str:
    """Returns the model_type of transformers that computes a network, that of `like` where it can."""
    if config.relpos_per_layer:
        return "umt5"
    return "mt5" if like and like.get("model_type") == "mt5" and not _scales(config) else "t5"


def to_hf_config(config: T5Config, dtype: str, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the configuration from which transformers builds this network.

    A configuration that describes this network already comes out as it went in. T5's and mT5's are read by
    transformers 4 and 5 alike, but for a head that is tied and not scaled, which
    is transformers 5's alone. umT5's logits are always scaled there, and written as transformers 5 reads it.

    Args:
        config: The network.
        dtype: The type of the stored parameters.
        like: The configuration that the model came with. What it says beside the network, such as token ids
            and settings of generation, is kept.

    Raises:
        UserError: If transformers has no such network.
    """
    activations = {ours: name for name, ours in reversed(_FEED_FORWARDS.items())}
    if config.mlp_activations not in activations:
        raise UserError(
            f"Expected a feed-forward that Hugging Face's T5 has, got {', '.join(config.mlp_activations)}. "
            "Fix: convert to another format."
        )
    if like is not None and _describes(like, config, dtype):
        return dict(like)
    family = find_model_type(config, like)
    of_network = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        **{theirs: getattr(config, ours) for ours, theirs in _SIZE_FIELDS.items()},
        "feed_forward_proj": activations[config.mlp_activations],
        "is_encoder_decoder": True,
        "tie_word_embeddings": family == "umt5" or config.logits_via_embedding,
        **({} if family == "umt5" else {"scale_decoder_outputs": _scales(config)}),
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    beside = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1, "use_cache": True}
    derived = {"dense_act_fn", "is_gated_act", "scale_decoder_outputs"}
    beside |= {name: value for name, value in (like or {}).items() if name not in derived}
    return {**beside, **of_network}


def _describes(raw: Mapping[str, Any], config: T5Config, dtype: str) -> bool:
    """Says whether transformers builds a network from a configuration and the weights that are written."""
    head = not config.logits_via_embedding
    if raw.get("model_type") not in ARCHITECTURES or find_model_type(config, raw) != raw["model_type"]:
        return False
    # What states are divided by, the head of a umT5 is multiplied by when it is written; no other's is.
    if has_scaled_outputs(raw) != (raw["model_type"] == "umt5" or _scales(config)):
        return False
    if any(raw.get(name, dtype) != dtype for name in ("dtype", "torch_dtype")):
        return False
    return parse_network(raw, head=head, dtype=config.dtype, where=CONFIG_FILE) == config


def _scales(config: T5Config) -> bool:
    return config.logits_via_embedding and config.scale_decoder_outputs


def _require_derived(raw: Mapping[str, Any], feed_forward: str, where: str) -> None:
    """Refuses a file whose derived fields are not those that `feed_forward_proj` gives."""
    gated, _, name = feed_forward.rpartition("-")
    derived: dict[str, str | bool] = {
        "dense_act_fn": "gelu_new" if feed_forward == "gated-gelu" else name,
        "is_gated_act": gated == "gated",
    }
    for field, wanted in derived.items():
        if raw.get(field, wanted) not in (wanted, None):
            raise UserError(
                f"Expected {field!r} in {where!r} to be {wanted!r}, as feed_forward_proj {feed_forward!r} "
                f"has it, got {raw[field]!r:.50}. Fix: make the two agree."
            )


def _read_object(file: epath.Path) -> dict[str, Any]:
    if not file.exists():
        raise UserError(
            f"Expected {CONFIG_FILE} of a Hugging Face checkpoint in {str(file.parent)!r}, got none. Fix: "
            "download "
            "it."
        )
    raw = storage.read_json_value(file, what="The configuration of a Hugging Face checkpoint")
    if not isinstance(raw, dict):
        raise UserError(
            f"Expected a JSON object in {str(file)!r}, got a {type(raw).__name__}. Fix: download it again."
        )
    return raw
