"""The fields of `adapter_config.json` of PEFT, for LoRA, (IA)³, VeRA and prompt tuning."""

import re
from collections.abc import Mapping

from elm_jax.weights.fields import FieldTable

# Which modules have an adapter, and of what rank, the tensors tell. The rest is bookkeeping, or acts in
# training alone. A T5 has no biases, so `bias` is the same whatever it says.
_UNUSED = {
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "target_modules", "exclude_modules", "fan_in_fan_out"),
}
_CHANGED_BASE_REMEDY = (
    "this start changed the base's own weights; save the adapter with PEFT's "
    "path_initial_model_for_weight_conversion, which makes it a plain LoRA of twice the rank"
)

_IGNORING = "pass --ignore {field} to `elm experts add` or `elm convert`"

LORA_FIELDS = FieldTable(
    format="PEFT's LoRA",
    ignoring=_IGNORING,
    used=frozenset({"peft_type", "r", "lora_alpha", "alpha_pattern", "use_rslora", "use_dora"}),
    unused=frozenset(
        {
            *_UNUSED,
            *("lora_dropout", "bias", "rank_pattern", "layers_to_transform", "layers_pattern"),
            *("target_parameters", "megatron_core", "qalora_group_size", "eva_config"),
            *("ensure_weight_tying", "runtime_config", "merge_weights"),
            # PEFT reads these only under the `init_lora_weights` of that name, which is refused.
            *("corda_config", "lora_ga_config", "loftq_config"),
        }
    ),
    neutral={
        # These draw or compute the factors, and leave the base as it is.
        "init_lora_weights": (True, False, re.compile("gaussian|eva|orthogonal|mica", re.IGNORECASE)),
        "modules_to_save": ([],),
        "lora_bias": (False,),
        "use_qalora": (False,),
        "trainable_token_indices": ([], {}),
        "layer_replication": ([],),
        **dict.fromkeys(("velora_config", "monteclora_config", "kasa_config"), ()),
        **dict.fromkeys(("use_bdlora", "arrow_config", "megatron_config"), ()),
        "alora_invocation_tokens": (),
    },
    remedies={
        "init_lora_weights": _CHANGED_BASE_REMEDY,
        "alora_invocation_tokens": "an adapter that acts from a token on is no expert here; train a LoRA",
    },
)
IA3_FIELDS = FieldTable(
    format="PEFT's (IA)³",
    ignoring=_IGNORING,
    used=frozenset({"peft_type"}),
    unused=frozenset({*_UNUSED, "feedforward_modules", "init_ia3_weights"}),
    neutral={"modules_to_save": ([],)},
)
VERA_FIELDS = FieldTable(
    format="PEFT's VeRA",
    ignoring=_IGNORING,
    used=frozenset({"peft_type", "r", "save_projection"}),
    unused=frozenset(
        {
            *_UNUSED,
            *("projection_prng_key", "vera_dropout", "d_initial", "bias", "init_weights"),
            *("layers_to_transform", "layers_pattern"),
        }
    ),
    neutral={"modules_to_save": ([],)},
)
PROMPT_TUNING = FieldTable(
    format="PEFT's prompt tuning",
    ignoring=_IGNORING,
    used=frozenset({"peft_type", "num_virtual_tokens"}),
    unused=frozenset(
        {
            *_UNUSED,
            *("token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"),
            *("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"),
        }
    ),
    neutral={"modules_to_save": ([],)},
)
FIELDS_BY_TYPE: Mapping[str, FieldTable] = {
    "LORA": LORA_FIELDS,
    "IA3": IA3_FIELDS,
    "VERA": VERA_FIELDS,
    "PROMPT_TUNING": PROMPT_TUNING,
}
