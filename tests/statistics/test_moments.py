"""Statistics are summed up batch by batch."""

import jax.numpy as jnp
import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.statistics.moments import add_gram, add_squares, require_squares


def test_a_gram_matrix_by_hand():
    np.testing.assert_array_equal(add_gram(jnp.array([[1.0, 2.0], [3.0, 0.0]])), [[10, 2], [2, 4]])


def test_batches_add_up_to_the_whole():
    rows = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
    whole = add_gram(rows)
    np.testing.assert_allclose(add_gram(rows[2:], add_gram(rows[:2])), whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(whole, rows.reshape(-1, 5).T @ rows.reshape(-1, 5), rtol=1e-5, atol=1e-5)
    squares = add_squares(rows[2:], add_squares(rows[:2]))
    np.testing.assert_allclose(squares, np.square(rows).sum(0), rtol=1e-5)


def test_squares_of_what_is_negative_are_refused():
    require_squares("a/p", "q", np.zeros(2))
    with pytest.raises(UserError, match="'a/p' for q"):
        require_squares("a/p", "q", np.array([1.0, -1e-9]))
