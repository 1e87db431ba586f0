"""Pooling: numbers that one can work out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from elm_jax.models import pooling

NAN = np.nan
HIDDEN = np.array([[[1.0, -2.0], [3.0, -4.0], [NAN, NAN]], [[5.0, 6.0], [NAN, NAN], [NAN, NAN]]], np.float32)
LENGTHS = np.array([2, 1], np.int32)


@pytest.mark.parametrize(
    ("how", "wanted"), [("mean", [[2, -3], [5, 6]]), ("cls", [[1, -2], [5, 6]]), ("max", [[3, -2], [5, 6]])]
)
def test_padding_has_no_part_in_a_vector(how, wanted):
    np.testing.assert_array_equal(pooling.pool(HIDDEN, LENGTHS, how), wanted)


def test_a_text_without_tokens_has_a_mean_of_zeros():
    np.testing.assert_array_equal(pooling.pool(HIDDEN[:1], np.array([0], np.int32), "mean"), [[0, 0]])


def test_a_projection_is_a_product_a_bias_and_what_follows():
    vectors = np.array([[1.0, 2.0]], np.float32)
    kernel = np.array([[1.0, 0.0, -1.0], [1.0, 1.0, 0.0]], np.float32)
    found = pooling.project(vectors, {"kernel": kernel}, "identity")
    np.testing.assert_array_equal(found, [[3, 2, -1]])
    bias = np.array([-3.0, 0.0, 0.0], np.float32)
    found = pooling.project(vectors, {"kernel": kernel, "bias": bias}, "relu")
    np.testing.assert_array_equal(found, [[0, 2, 0]])
    found = pooling.project(vectors, {"kernel": kernel, "bias": bias}, "tanh")
    np.testing.assert_allclose(found, np.tanh([[0, 2, -1]]), atol=1e-6)


def test_a_normalised_vector_has_length_one_and_zeros_stay_zeros():
    found = pooling.normalize(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0]], atol=1e-7)
