"""Soft prompts: where they stand in rows, packed or not, and that zeros are no tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.models import soft_prompts
from elm_jax.models.t5 import T5

RNG = np.random.default_rng(6)


def expert(vectors):
    return {"encoder": {"prompt": {"prompt": {"prompt": np.asarray(vectors, np.float32)}}}}


VECTORS = RNG.normal(size=(2, 2, 32)).astype(np.float32)  # two experts of two tokens
PROMPTS = np.array([[5, 6, 7, 8, 9, 0], [5, 6, 0, 0, 0, 0]], np.int32)
SEGMENTS = np.array([[1, 1, 2, 2, 2, 0], [1, 1, 0, 0, 0, 0]], np.int32)


def test_without_packing_they_stand_before_every_row():
    found = soft_prompts.insert_soft_tokens(PROMPTS, None, expert(VECTORS), np.array([1, 0], np.int32))
    np.testing.assert_array_equal(found.tokens, [[-1, -2, 5, 6, 7, 8, 9, 0], [-1, -2, 5, 6, 0, 0, 0, 0]])
    embedded = np.asarray(soft_prompts.embed(found, jnp.zeros((2, 8, 32))))
    np.testing.assert_array_equal(embedded[:, :2], VECTORS[[1, 0]])
    assert not embedded[:, 2:].any()


def test_in_a_packed_row_they_stand_before_every_segment():
    of_segment = np.array([[1, 0], [0, 1]], np.int32)
    found = soft_prompts.insert_soft_tokens(PROMPTS, SEGMENTS, expert(VECTORS), of_segment)
    np.testing.assert_array_equal(found.tokens[0], [-1, -2, 5, 6, -1, -2, 7, 8, 9, 0])
    np.testing.assert_array_equal(found.segments[0], [1, 1, 1, 1, 2, 2, 2, 2, 2, 0])
    np.testing.assert_array_equal(found.tokens[1], [-1, -2, 5, 6, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(found.segments[1], [1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    embedded = np.asarray(soft_prompts.embed(found, jnp.zeros((2, 10, 32))))
    np.testing.assert_array_equal(embedded[0, [0, 1, 4, 5]], VECTORS[[1, 1, 0, 0], [0, 1, 0, 1]])
    np.testing.assert_array_equal(embedded[1, :2], VECTORS[0])
    assert not embedded[0, [2, 3, 6, 7, 8, 9]].any()


def test_rows_that_were_folded_into_one_are_those_of_each_one_after_the_other():
    of_segment = np.array([[1, 0], [0, 1]], np.int32)
    apart = soft_prompts.insert_soft_tokens(PROMPTS, SEGMENTS, expert(VECTORS), of_segment)
    numbered = np.where(SEGMENTS > 0, SEGMENTS + np.array([[0], [2]]), 0).astype(np.int32)
    folded = [array.reshape(1, -1) for array in (PROMPTS, numbered, of_segment)]
    together = soft_prompts.insert_soft_tokens(folded[0], folded[1], expert(VECTORS), folded[2])
    np.testing.assert_array_equal(together.tokens[0], np.ravel(apart.tokens))


def test_zeros_are_no_tokens_and_a_shorter_prompt_may_be_filled_with_them(base, config):
    vectors = RNG.normal(size=(2, 32)).astype(np.float32)
    answers = RNG.integers(3, 96, (2, 2, 3)).astype(np.int32)
    network = jax.jit(lambda *own: T5(config).apply({"params": base}, PROMPTS, answers, *own))
    short = network(expert(vectors))
    filled = network(expert(np.concatenate([np.zeros((3, 32)), vectors])))
    np.testing.assert_allclose(filled, short, atol=1e-5)
    np.testing.assert_allclose(network(expert(np.zeros((2, 32)))), network(), atol=1e-5)
    assert np.abs(np.asarray(short) - network()).max() > 0.1


def test_packed_rows_that_name_one_expert_for_a_row_are_refused():
    for own, index in ((VECTORS, np.array([0, 1], np.int32)), (VECTORS[0], None)):
        with pytest.raises(UserError, match="an expert for every segment"):
            soft_prompts.insert_soft_tokens(PROMPTS, SEGMENTS, expert(own), index)
