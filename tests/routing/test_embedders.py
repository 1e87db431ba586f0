"""The embedder: texts in, vectors out, in their order and the same in every batch."""

import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import elm_jax
from elm_jax.errors import UserError
from elm_jax.models import bert_encoder
from elm_jax.routing import embedding
from elm_jax.weights import embedders

TEXTS = ["the dog", "", "a cat runs! " * 9, "Dog", "the cats run", "e é ! the", "\n\t", "漢字 🐕"]


@pytest.fixture(scope="module")
def place(write_encoder, tmp_path_factory):
    place = tmp_path_factory.mktemp("tiny")
    write_encoder(place, length=18)
    return place


@pytest.fixture(scope="module")
def embedder(place):
    return elm_jax.load_embedder(place, batch_tokens=36)


@pytest.fixture(scope="module")
def by_hand(place):
    """Every text alone and unpadded: the mean of its tokens over the mean's length."""
    read = embedders.load_encoder(place)
    run = jax.jit(lambda *batch: bert_encoder.encode(read.network, read.params, *batch))

    def vector(text):
        ids = read.tokenizer.encode(text).ids
        tokens = np.pad(np.array(ids, np.int32), (0, 18 - len(ids)))[None]
        mean = np.asarray(run(tokens, np.array([len(ids)], np.int32)))[0, : len(ids)].mean(axis=0)
        return mean / np.sqrt((mean**2).sum())

    return np.stack([vector(text) for text in TEXTS])


def test_a_vector_is_the_mean_of_a_text_s_tokens_divided_by_its_length(embedder, by_hand):
    found = embedder(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_hand, atol=1e-5)
    # Texts of the same tokens aside, no two are alike.
    different = [0, 1, 2, 3, 4, 5, 7]
    apart = np.abs(by_hand[different][:, None] - by_hand[different][None]).max(axis=-1)
    assert apart[~np.eye(len(different), dtype=bool)].min() > 5e-3


@settings(max_examples=10, deadline=None)
@given(order=st.lists(st.integers(0, len(TEXTS) - 1), min_size=5, max_size=8))
def test_order_and_company_change_no_vector(embedder, by_hand, order):
    np.testing.assert_allclose(embedder([TEXTS[each] for each in order]), by_hand[order], atol=1e-5)


def test_texts_of_many_chunks_come_back_in_their_order(embedder, by_hand, monkeypatch):
    monkeypatch.setattr(embedding, "CHUNK", 3)
    np.testing.assert_allclose(embedder(TEXTS * 3), np.tile(by_hand, (3, 1)), atol=1e-5)


def test_an_embedder_tells_what_it_is(embedder, place):
    assert embedder.name == f"bert-mean/{embedder.fingerprint}"
    assert embedder.fingerprint == embedders.load_encoder(place).fingerprint
    assert (embedder.dimension, embedder.max_length) == (8, 18)


def test_no_texts_give_no_vectors(embedder):
    assert embedder([]).shape == (0, 8)


def test_half_of_a_surrogate_pair_is_read_as_a_question_mark(embedder):
    np.testing.assert_array_equal(embedder(["the \ud800 dog", "a"]), embedder(["the ? dog", "a"]))


def test_one_text_that_is_no_list_is_refused_rather_than_read_letter_by_letter(embedder):
    with pytest.raises(UserError, match="wants a list of texts, but 'the dog' came"):
        embedder("the dog")


def test_few_shapes_are_compiled_and_little_is_padding(place):
    encoder = embedders.load_encoder(place)
    texts = ["dog " * length for length in range(400)]
    batches = [tokens.shape for _, tokens, _ in embedding._batches(encoder, texts, 64)]
    assert set(batches) == {(4, 16), (3, 18)}
    assert all(tokens.sum() for _, tokens, _ in embedding._batches(encoder, texts, 64))
    lengths = [embedding._length(tokens, 512) for tokens in range(1, 513)]
    assert len(set(lengths)) == 14
    assert max(length / tokens for tokens, length in enumerate(lengths, start=1) if tokens > 16) < 2
    assert embedding._length(100, 100) == 100


def test_a_single_text_is_no_batch_of_many(place):
    ((_, tokens, _),) = embedding._batches(embedders.load_encoder(place), ["the dog"], 1024)
    assert tokens.shape == (1, 16)


def test_bfloat16_is_near_float32(place, embedder):
    narrow = elm_jax.load_embedder(place, dtype="bfloat16", batch_tokens=36)
    assert narrow.name != embedder.name
    cosine = (narrow(TEXTS) * embedder(TEXTS)).sum(axis=1)
    assert 0.99 < cosine.min() < 1


def test_a_projection_follows_the_pooling(tmp_path, write_encoder):
    write_encoder(tmp_path, normalized=False)
    pooled = elm_jax.load_embedder(tmp_path)(TEXTS)
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "2_Dense" / "config.json").write_text(
        json.dumps({"activation_function": "torch.nn.modules.activation.Tanh"})
    )
    linear = {"linear.weight": np.eye(8, dtype=np.float32)[:3], "linear.bias": np.ones(3, np.float32)}
    save_file(linear, tmp_path / "2_Dense" / "model.safetensors")
    found = elm_jax.load_embedder(tmp_path)
    assert found.dimension == 3
    np.testing.assert_allclose(found(TEXTS), np.tanh(pooled[:, :3] + 1), atol=1e-5)
