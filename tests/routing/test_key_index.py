"""The table of keys that routers search."""

import jax.numpy as jnp
import numpy as np

from elm_jax.routing import key_index


def test_vectors_of_any_type_are_joined_in_their_order_in_float32():
    parts = [np.arange(6.0).reshape(3, 2), np.zeros((0, 2), np.float32), jnp.ones((1, 2), jnp.bfloat16)]
    joined = key_index.join_vectors(iter(parts), (4, 2))
    assert joined.dtype == np.float32
    np.testing.assert_array_equal(joined, [[0, 1], [2, 3], [4, 5], [1, 1]])
