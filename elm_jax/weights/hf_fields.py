"""The fields of `config.json` of transformers, for the families that are read: T5's and BERT's.

Since version 5 transformers keeps how to generate in `generation_config.json`; before, it wrote those fields
here. They do not change what the network computes.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from elm_jax.weights.fields import IGNORE_IN_INDEX, FieldTable

# What every configuration of transformers may hold, of versions 4 and 5, and of no effect on the network.
_BOOKKEEPING = {
    *("architectures", "transformers_version", "_name_or_path", "name_or_path", "_commit_hash"),
    *("dtype", "torch_dtype", "return_dict", "output_attentions", "output_hidden_states", "output_scores"),
    *("use_cache", "problem_type", "id2label", "label2id", "num_labels", "finetuning_task"),
    *("task_specific_params", "tokenizer_class", "gradient_checkpointing", "output_past", "n_positions"),
    *("_attn_implementation", "_attn_implementation_autoset", "attn_implementation", "torchscript"),
    *("use_bfloat16", "tf_legacy_loss", "classifier_dropout", "prefix", "chunk_size_feed_forward"),
}
# How transformers 4 generated, where nothing else was said.
_GENERATING = {
    *("max_length", "min_length", "max_new_tokens", "do_sample", "early_stopping", "num_beams"),
    *("num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p"),
    *("repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"),
    *("bad_words_ids", "num_return_sequences", "return_dict_in_generate", "remove_invalid_values"),
    *("forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens"),
    *("exponential_decay_length_penalty", "sep_token_id", "bos_token_id", "eos_token_id", "pad_token_id"),
}
# What would change any network, where it is set.
_CHANGING: Mapping[str, tuple[Any, ...]] = {
    "pruned_heads": ({},),
    "tie_encoder_decoder": (False,),
    "cross_attention_hidden_size": (),
    "add_cross_attention": (False,),
    "is_decoder": (False,),
    "quantization_config": (),
}
_QUANTIZED = "convert the checkpoint to float32 or bfloat16 with the library that quantised it"

T5_FIELDS = FieldTable(
    format="a T5",
    used=frozenset(
        {
            *("model_type", "vocab_size", "d_model", "num_heads", "num_layers", "num_decoder_layers"),
            *("d_kv", "d_ff", "relative_attention_num_buckets", "relative_attention_max_distance"),
            *("dropout_rate", "layer_norm_epsilon", "feed_forward_proj", "dense_act_fn", "is_gated_act"),
            *("tie_word_embeddings", "scale_decoder_outputs"),
        }
    ),
    unused=frozenset(
        {
            *(*_BOOKKEEPING, *_GENERATING, "initializer_factor", "scalable_attention"),
            "is_encoder_decoder",  # false where the encoder was saved alone
        }
    ),
    neutral={**_CHANGING, "decoder_start_token_id": (0,)},
    remedies={
        "decoder_start_token_id": "answers start with token 0 here; train or use a model that starts so too",
        "quantization_config": _QUANTIZED,
    },
)
T5_ENCODER_FIELDS = replace(T5_FIELDS, ignoring=IGNORE_IN_INDEX)
BERT_FIELDS = FieldTable(
    format="a BERT",
    used=frozenset(
        {
            *("model_type", "vocab_size", "hidden_size", "num_attention_heads", "num_hidden_layers"),
            *("intermediate_size", "max_position_embeddings", "hidden_act", "layer_norm_eps"),
            *("position_embedding_type", "pad_token_id", "relative_attention_num_buckets"),
        }
    ),
    unused=frozenset(
        {
            *_BOOKKEEPING,
            *(_GENERATING - {"pad_token_id"}),
            *("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range"),
            *("type_vocab_size", "tie_word_embeddings"),
            # Heads that a sentence encoder does not have.
            *("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers"),
            *("pooler_size_per_head", "pooler_type"),
        }
    ),
    neutral={**_CHANGING, "is_encoder_decoder": (False,)},
    remedies={"quantization_config": _QUANTIZED},
    ignoring=IGNORE_IN_INDEX,
)
