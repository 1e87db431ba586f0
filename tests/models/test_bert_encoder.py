"""BERT's encoder and its kin: what plain loops give, whatever the padding and the batch."""

import math
from functools import cache

import jax
import numpy as np
import pytest

from elm_jax.models import bert_encoder, paths
from elm_jax.models.layers import relative_bucket
from elm_jax.weights import bert

CONFIG = {
    "vocab_size": 14,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 20,
    "layer_norm_eps": 1e-6,
    "pad_token_id": 1,
}
KINDS = ["bert", "roberta", "mpnet"]
TOKENS = np.array([[2, 5, 6, 7, 3, 0, 0], [2, 9, 3, 0, 0, 0, 0], [2, 4, 4, 8, 10, 11, 3]], np.int32)
LENGTHS = np.array([5, 3, 7], np.int32)


@pytest.fixture(scope="module")
def networks(write_encoder, tmp_path_factory):
    """Per kind: its shape, its parameters, and the tensors they were made of."""
    made = {}
    for kind in KINDS:
        tensors = write_encoder(tmp_path_factory.mktemp(kind), kind=kind)
        config = bert.parse_network({**CONFIG, "model_type": kind}, dtype="float32", where="here")
        params = paths.unflatten(bert.convert_params(config, tensors, kind, where="here"))
        made[kind] = config, params, tensors
    return made


@cache
def compiled(config):
    return jax.jit(lambda params, *batch: bert_encoder.encode(config, params, *batch))


def encode(network, tokens=TOKENS, lengths=LENGTHS):
    config, params, _ = network
    return np.asarray(compiled(config)(params, np.ascontiguousarray(tokens), np.ascontiguousarray(lengths)))


def by_hand(kind, tensors, tokens):
    """One text without padding, in float64, token by token and head by head."""
    get = {name: value.astype(np.float64) for name, value in tensors.items()}

    def dense(name, x):
        return x @ get[f"{name}.weight"].T + get[f"{name}.bias"]

    def norm(name, x):
        mean = x.mean(axis=-1, keepdims=True)
        spread = np.sqrt(((x - mean) ** 2).mean(axis=-1, keepdims=True) + 1e-6)
        return (x - mean) / spread * get[f"{name}.weight"] + get[f"{name}.bias"]

    first = 0 if kind == "bert" else 2
    x = get["embeddings.word_embeddings.weight"][tokens]
    x = x + get["embeddings.position_embeddings.weight"][first : first + len(tokens)]
    if kind != "mpnet":
        x = x + get["embeddings.token_type_embeddings.weight"][0]
    x = norm("embeddings.LayerNorm", x)
    for layer in range(2):
        at = f"encoder.layer.{layer}"
        own = "attention.attn.{}" if kind == "mpnet" else "attention.self.{}"
        parts = "qkv" if kind == "mpnet" else ("query", "key", "value")
        q, k, v = (dense(f"{at}.{own.format(part)}", x) for part in parts)
        attended = np.zeros_like(x)
        for head in range(2):
            cut = slice(4 * head, 4 * head + 4)
            for here in range(len(tokens)):
                logits = np.array([q[here, cut] @ k[there, cut] / 2 for there in range(len(tokens))])
                if kind == "mpnet":
                    # Near positions have a bucket each: 16 and more for keys that come after the query.
                    away = [here - there for there in range(len(tokens))]
                    table = get["encoder.relative_attention_bias.weight"]
                    logits += [table[n if n >= 0 else 16 - n, head] for n in away]
                weights = np.exp(logits) / np.exp(logits).sum()
                attended[here, cut] = weights @ v[:, cut]
        out = "attention.attn.o" if kind == "mpnet" else "attention.output.dense"
        after = "attention.LayerNorm" if kind == "mpnet" else "attention.output.LayerNorm"
        x = norm(f"{at}.{after}", x + dense(f"{at}.{out}", attended))
        inside = dense(f"{at}.intermediate.dense", x)
        inside = inside * 0.5 * (1 + np.vectorize(math.erf)(inside / math.sqrt(2)))
        x = norm(f"{at}.output.LayerNorm", x + dense(f"{at}.output.dense", inside))
    return x


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_those_of_plain_loops(networks, kind):
    found = encode(networks[kind])
    for row, length in enumerate(LENGTHS):
        wanted = by_hand(kind, networks[kind][2], TOKENS[row, :length])
        np.testing.assert_allclose(found[row, :length], wanted, atol=2e-5)


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_padding_changes_no_state_whatever_stands_there(networks, kind):
    whole = encode(networks[kind])
    wide = np.pad(TOKENS, ((0, 0), (0, 5)), constant_values=13)
    wide[:, :7][TOKENS == 0] = 12
    found = encode(networks[kind], wide)
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(found[row, :length], whole[row, :length], atol=1e-5)


def test_a_row_does_not_depend_on_its_batch(networks):
    whole = encode(networks["mpnet"])
    found = encode(networks["mpnet"], TOKENS[::-1], LENGTHS[::-1])
    np.testing.assert_allclose(found[::-1], whole, atol=1e-5)
    found = encode(networks["mpnet"], TOKENS[[1, 0, 0]], LENGTHS[[1, 0, 0]])
    np.testing.assert_allclose(found, whole[[1, 0, 0]], atol=1e-5)


def test_a_row_of_no_tokens_disturbs_no_other_and_is_finite(networks):
    found = encode(networks["bert"], lengths=np.array([5, 0, 7], np.int32))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[[0, 2]], encode(networks["bert"])[[0, 2]], atol=1e-5)


def test_a_padding_token_inside_a_text_takes_no_position_from_the_others(networks):
    # Id 1 is padding here; RoBERTa counts positions over what is not.
    config, params, _ = networks["roberta"]
    table = np.asarray(params["embedder"]["position"])
    found = bert_encoder._positions(config, table, np.array([[2, 5, 1, 7]], np.int32))
    np.testing.assert_array_equal(found[0], table[[2, 3, 1, 4]])


def test_the_longest_text_leaves_out_the_positions_that_are_never_given(networks):
    assert networks["bert"][0].longest == 20
    assert networks["mpnet"][0].longest == 18


def test_bfloat16_takes_products_in_it_and_stays_near(networks):
    config, params, tensors = networks["bert"]
    narrow = bert.parse_network({**CONFIG, "model_type": "bert"}, dtype="bfloat16", where="here")
    found = encode((narrow, params, tensors))
    wide = encode((config, params, tensors))
    assert found.dtype == np.float32
    assert 0 < np.abs(found - wide)[LENGTHS[:, None] > np.arange(7)].max() < 0.3


def test_distances_fall_into_the_buckets_of_t5():
    away = np.array([0, 1, 7, 8, 15, 16, 32, 64, 127, 128, 500])
    found = relative_bucket(-away, bidirectional=True, buckets=32, max_distance=128)
    # Exact below 8, then an eighth of log(16) a step: 8 · 16^(n/8).
    assert found.tolist() == [0, 1, 7, 8, 9, 10, 12, 14, 15, 15, 15]
