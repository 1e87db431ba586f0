"""The fields of the files that sentence-transformers writes: of the model, and of each of its steps."""

from collections.abc import Mapping
from typing import Any

from elm_jax.weights.fields import IGNORE_IN_INDEX, FieldTable

_VECTOR = "sentence_embedding"
_EMPTY = ({}, [])


def _table(
    format: str, used: set[str], unused: set[str], neutral: Mapping[str, tuple[Any, ...]]
) -> FieldTable:
    return FieldTable(format, frozenset(used), frozenset(unused), neutral, ignoring=IGNORE_IN_INDEX)


# Texts are embedded as `encode` does it without a prompt's name: the other prompts are not used.
MODEL_FIELDS = _table(
    "a sentence encoder",
    used={"prompts", "default_prompt_name"},
    unused={"__version__", "similarity_fn_name"},
    neutral={"model_type": ("SentenceTransformer",)},
)
MODULES_FIELDS = _table(
    "a step in modules.json", used={"path", "type"}, unused={"idx", "name"}, neutral={"kwargs": _EMPTY}
)
NETWORK_FIELDS = _table(
    "a Transformer step",
    used={"max_seq_length", "do_lower_case"},
    unused={"unpad_inputs"},
    neutral={
        "transformer_task": ("feature-extraction",),
        "modality_config": ({"text": {"method": "forward", "method_output_name": "last_hidden_state"}},),
        "module_output_name": ("token_embeddings",),
        "query_length": (),
        "document_length": (),
        "query_expansion": (),
        "tokenizer_name_or_path": (),
        **dict.fromkeys(("processing_kwargs", "model_args", "tokenizer_args", "config_args"), _EMPTY),
    },
)
POOLING_FIELDS = _table(
    "a Pooling step",
    used={
        *("pooling_mode", "include_prompt"),
        *(
            f"pooling_mode_{mode}"
            for mode in (
                *("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens"),
                *("weightedmean_tokens", "lasttoken"),
            )
        ),
    },
    unused={"embedding_dimension", "word_embedding_dimension"},
    neutral={},
)
DENSE_FIELDS = _table(
    "a Dense step",
    used={"activation_function"},
    unused={"in_features", "out_features", "bias"},
    neutral={
        "module_input_name": (_VECTOR,),
        "module_output_name": (_VECTOR,),
        "use_residual": (False,),
    },
)
NORMALIZE_FIELDS = _table(
    "a Normalize step",
    used=set(),
    unused=set(),
    neutral={"module_input_name": (_VECTOR,), "module_output_name": (_VECTOR,)},
)
