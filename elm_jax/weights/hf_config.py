"""`config.json` of Hugging Face's T5, as the shape of a network and back.

`scale_decoder_outputs` says whether logits are divided by sqrt(d_model), as those of T5 1.0 are. Before
transformers 5 `tie_word_embeddings` said so; since then that is true in every file, whatever the model. Which
head there is, is for the weights to say: one in the file is the head.
"""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from elm_jax.errors import UserError
from elm_jax.models.sizes import T5Config
from elm_jax.weights import base as bases

FILE = "config.json"
FAMILIES = ("t5", "mt5")
_FIELDS = {
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
_REQUIRED = ("vocab_size", "d_model", "num_heads", "num_layers", "d_kv", "d_ff")
_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "relu": ("relu",),
    "gelu_new": ("gelu",),
    "gated-relu": ("relu", "linear"),
    "gated-gelu": ("gelu", "linear"),  # transformers takes the tanh form here, whatever the name says
    "gated-gelu_new": ("gelu", "linear"),
}


def read(directory: epath.Path) -> dict[str, Any]:
    """Returns the configuration of a T5 or mT5; a UserError if it is another model's or lacks a size."""
    file = directory / FILE
    try:
        told = json.loads(file.read_bytes())
    except OSError:
        raise UserError(
            f"A Hugging Face checkpoint has its shape in {FILE}, but {str(directory)!r} has no such file to "
            "read. Download it too."
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{str(file)!r} is no JSON ({type(error).__name__}). Download it again.") from None
    if not isinstance(told, dict):
        raise UserError(f"{str(file)!r} should hold a JSON object, but a {type(told).__name__} came.")
    if told.get("model_type") not in FAMILIES:
        raise UserError(
            f"{str(file)!r} should describe a model of type {' or '.join(FAMILIES)}, but describes "
            f"{told.get('model_type')!r:.50}. elm_jax has T5 alone."
        )
    for name in _REQUIRED:
        if told.get(name) is None:
            raise UserError(f"{str(file)!r} should tell {name!r}, but lacks it. Download it again.")
    return told


def network(told: Mapping[str, Any], *, head: bool, dtype: str, where: str) -> T5Config:
    """Returns the shape that a configuration describes, for weights with a head of their own or without."""
    feed_forward = told.get("feed_forward_proj", "relu" if told["model_type"] == "t5" else "gated-gelu")
    if not isinstance(feed_forward, str) or feed_forward not in _ACTIVATIONS:
        raise UserError(
            f"{where!r} should have a feed_forward_proj of {', '.join(_ACTIVATIONS)}, but has "
            f"{feed_forward!r:.50}."
        )
    fields = {ours: told[theirs] for ours, theirs in _FIELDS.items() if told.get(theirs) is not None}
    fields.setdefault("num_decoder_layers", told["num_layers"])
    fields |= {"mlp_activations": _ACTIVATIONS[feed_forward], "dtype": dtype}
    if not (head or wants_head(told)):
        fields |= {"logits_via_embedding": True, "scale_decoder_outputs": is_scaled(told)}
    return bases.config_of(fields, where=where, called=_FIELDS)


def is_scaled(told: Mapping[str, Any]) -> bool:
    """Says whether logits are divided by sqrt(d_model); mT5's never are."""
    before = told["model_type"] == "t5" and told.get("tie_word_embeddings") is not False
    return bool(told.get("scale_decoder_outputs", before))


def wants_head(told: Mapping[str, Any]) -> bool:
    """Says whether the weights must have a head: so did transformers 4 where it was told of no tie."""
    return told.get("tie_word_embeddings") is False and "scale_decoder_outputs" not in told


def written(config: T5Config, dtype: str) -> dict[str, Any]:
    """Returns the configuration from which transformers 4 and 5 build this network.

    A head that is tied and not scaled is transformers 5's alone, and written as it writes it.
    """
    activations = {ours: name for name, ours in reversed(_ACTIVATIONS.items())}
    if config.mlp_activations not in activations:
        raise UserError(
            f"Hugging Face's T5 has no feed-forward of {', '.join(config.mlp_activations)}; "
            "convert to another format."
        )
    if config.relpos_per_layer:
        raise UserError(
            "Hugging Face's T5 has one table of relative positions a stack, but this one has one a layer; "
            "convert to elm."
        )
    scaled = config.logits_via_embedding and config.scale_decoder_outputs
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        **{theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()},
        "feed_forward_proj": activations[config.mlp_activations],
        "is_encoder_decoder": True,
        "tie_word_embeddings": config.logits_via_embedding,
        "scale_decoder_outputs": scaled,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
