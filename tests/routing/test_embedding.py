"""Embedding: the masked mean of the encoder's output, the same in every batch."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_jax.errors import UserError
from elm_jax.models.t5 import T5
from elm_jax.routing import embedding
from elm_jax.scoring import buckets

RNG = np.random.default_rng(6)
TEXTS = [RNG.integers(3, 48, length) for length in (3, 8, 1, 11, 6, 8, 5)]


@pytest.fixture(scope="module")
def by_hand(config, base):
    """Every text encoded alone and unpadded but for one: the mean of its tokens, over the mean's length."""
    encode = jax.jit(lambda tokens: T5(config).apply({"params": base}, tokens, method="encode"))

    def vector(text):
        padded = np.pad(text, (0, 11 - len(text)))[None].astype(np.int32)
        mean = np.asarray(encode(padded))[0, : len(text)].mean(axis=0)
        return mean / np.sqrt((mean**2).sum())

    return np.stack([vector(text) for text in TEXTS])


def test_a_vector_is_the_mean_over_real_tokens_divided_by_its_length(config, base, by_hand):
    found = embedding.embed_rows(config, base, TEXTS, batch_size=4)
    np.testing.assert_allclose(found, by_hand, atol=1e-5)
    assert np.abs(by_hand[:, None] - by_hand[None]).max(axis=-1)[~np.eye(len(TEXTS), dtype=bool)].min() > 1e-2


@settings(max_examples=10, deadline=None)
@given(
    order=st.lists(st.integers(0, len(TEXTS) - 1), min_size=1, max_size=9), batch_size=st.sampled_from([2, 4])
)
def test_order_and_batch_size_change_no_vector(config, base, by_hand, order, batch_size):
    found = embedding.embed_rows(config, base, [TEXTS[each] for each in order], batch_size=batch_size)
    np.testing.assert_allclose(found, by_hand[order], atol=1e-5)


def test_padding_changes_no_vector(config, base, by_hand, monkeypatch):
    monkeypatch.setattr(embedding, "BUCKET_LENGTHS", (19,))
    found = embedding.embed_rows(config, base, TEXTS, batch_size=4)
    np.testing.assert_allclose(found, by_hand, atol=1e-5)


def test_vectors_are_float32_of_length_one(config, base):
    found = embedding.embed_rows(config, base, TEXTS, batch_size=4)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_a_text_without_tokens_gives_zeros_and_disturbs_no_other(config, base, by_hand):
    found = embedding.embed_rows(config, base, [TEXTS[0], np.zeros(0, np.int32), TEXTS[1]], batch_size=4)
    np.testing.assert_array_equal(found[1], 0)
    np.testing.assert_allclose(found[[0, 2]], by_hand[:2], atol=1e-5)


def test_lists_of_tokens_serve_as_well_as_arrays(config, base, by_hand):
    found = embedding.embed_rows(config, base, [text.tolist() for text in TEXTS[:4]], batch_size=4)
    np.testing.assert_allclose(found, by_hand[:4], atol=1e-5)


def test_no_texts_give_no_vectors(config, base):
    assert embedding.embed_rows(config, base, []).shape == (0, config.emb_dim)


def test_a_text_longer_than_the_longest_bucket_is_refused(config, base):
    long = np.full(buckets.BUCKET_LENGTHS[-1] + 1, 5)
    with pytest.raises(UserError, match="at most 2048, got 2049"):
        embedding.embed_rows(config, base, [TEXTS[0], long], batch_size=2)


def test_the_embedder_is_named_by_its_base():
    assert embedding.name_t5_embedder("0123456789abcdef") == "t5-encoder-mean/0123456789abcdef"
