"""Top-k search is exact, keeps ties in the order of rows, and needs no more memory for more rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from elm_jax.errors import UserError
from elm_jax.routing import search

# Small whole numbers: sums are exact, so that equal similarities are equal to the last bit; both zeros occur.
WHOLE = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1.0, 2.0])


def plain(queries, rows, k):
    """The same by sorting everything; NumPy's stable sort keeps ties in order."""
    products = queries @ rows.T
    order = np.argsort(-products, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(products, order, axis=1), order


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_it_equals_a_stable_sort_of_everything_ties_included(data):
    count = data.draw(st.sampled_from([1, 5, 9]))
    queries = data.draw(hnp.arrays(np.float32, (3, 2), elements=WHOLE))
    rows = data.draw(hnp.arrays(np.float32, (count, 2), elements=WHOLE))
    k = data.draw(st.sampled_from(sorted({1, min(4, count), count})))
    block = data.draw(st.sampled_from([1, 4, 100]))
    similarities, positions = search.top_k(queries, rows, k, block=block)
    expected, order = plain(queries, rows, k)
    np.testing.assert_array_equal(similarities, expected)
    np.testing.assert_array_equal(positions, order)


def test_equal_rows_tie_wherever_they_stand():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3, 384)).astype(np.float32)[rng.integers(0, 3, 301)]
    queries = rng.normal(size=(5, 384)).astype(np.float32)
    similarities, positions = search.top_k(queries, rows, 20, block=64)
    assert all(len(set(row)) == 1 for row in np.asarray(similarities).tolist())
    assert (np.diff(positions, axis=1) > 0).all()


def test_zeros_of_both_signs_tie():
    # The products are -0, 0, -0.
    _, positions = search.top_k(-np.ones((1, 1)), np.array([[0.0], [-0.0], [0.0]]), 3)
    assert positions.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("block", [7, 50, 99, 100, 1000])
def test_the_size_of_blocks_changes_nothing(block):
    rng = np.random.default_rng(1)
    queries, rows = rng.normal(size=(4, 8)), rng.normal(size=(100, 8))
    similarities, positions = search.top_k(queries, rows, 12, block=block)
    expected, order = plain(queries, rows, 12)
    np.testing.assert_array_equal(positions, order)
    np.testing.assert_allclose(similarities, expected, rtol=1e-5)


def test_rows_that_are_not_allowed_are_passed_over():
    queries, rows = np.eye(1, 2), np.array([[3.0, 0], [2.0, 0], [1.0, 0]])
    similarities, positions = search.top_k(queries, rows, 2, allowed=np.array([False, True, True]))
    assert (similarities.tolist(), positions.tolist()) == ([[2.0, 1.0]], [[1, 2]])


def test_where_fewer_rows_are_allowed_than_asked_for_the_rest_is_no_row():
    queries, rows = np.eye(1, 2), np.array([[3.0, 0], [2.0, 0], [-1.0, 0]])
    similarities, positions = search.top_k(queries, rows, 3, allowed=np.array([False, False, True]), block=2)
    assert (similarities.tolist(), positions.tolist()) == ([[-1.0, -np.inf, -np.inf]], [[2, -1, -1]])


def test_it_may_be_called_inside_jit():
    queries, rows = np.eye(2, 3), np.arange(12.0).reshape(4, 3)
    inside = jax.jit(lambda queries, rows: search.top_k(queries, rows, 2, block=3))
    _, positions = inside(queries, rows)
    assert positions.tolist() == [[3, 2], [3, 2]]


def test_other_values_and_other_allowed_rows_compile_nothing():
    queries, rows = jnp.ones((2, 3)), jnp.ones((5, 3))
    search.top_k(queries, rows, 2, allowed=jnp.ones(5, bool))
    compiled = search._compile_search(2, 5)._cache_size()
    search.top_k(queries * 2, rows * 3, 2, allowed=jnp.arange(5) > 2)
    search.top_k(queries, rows, 2)
    assert search._compile_search(2, 5)._cache_size() == compiled


def test_memory_beside_the_rows_does_not_grow_with_them():
    def temporary(count):
        sizes = [
            jax.ShapeDtypeStruct(shape, dtype)
            for shape, dtype in [((32, 16), jnp.float32), ((count, 16), jnp.float32), ((count,), jnp.bool_)]
        ]
        program = search.search_program(*sizes, 4, block=1024)
        return program.lower().compile().memory_analysis().temp_size_in_bytes

    assert temporary(1_000_000) == temporary(10_000)


def mesh():
    return jax.sharding.Mesh(np.array(jax.devices()), ("data",))


@pytest.mark.parametrize("k", [1, 5, 30])
def test_sharded_it_finds_the_same_ties_included(k):
    rng = np.random.default_rng(2)
    rows = rng.integers(-1, 2, (4 * len(jax.devices()), 3)).astype(np.float32)
    queries, allowed = rng.integers(-1, 2, (4, 3)).astype(np.float32), np.arange(len(rows)) % 5 != 0
    whole = search.top_k(queries, rows, k, allowed=allowed)
    parts = search.top_k_sharded(queries, rows, k, mesh=mesh(), axis="data", allowed=allowed)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other)


def test_sharded_no_rows_travel():
    there = mesh()
    sharding = jax.sharding.NamedSharding(there, jax.sharding.PartitionSpec("data"))
    rows = jax.device_put(np.ones((128, 16), np.float32), sharding)
    find = jax.jit(lambda queries, rows: search.top_k_sharded(queries, rows, 2, mesh=there, axis="data"))
    program = find.lower(np.ones((3, 16), np.float32), rows).compile().as_text()
    gathered = [line for line in program.splitlines() if "all-gather(" in line]
    assert gathered
    assert not any("128,16" in line for line in gathered)


def test_rows_that_do_not_make_equal_parts_are_refused():
    with pytest.raises(UserError, match="got 9"):
        search.top_k_sharded(np.ones((1, 2)), np.ones((9, 2)), 1, mesh=mesh(), axis="data")


def test_narrow_rows_are_compared_in_float32():
    rows = jnp.array([[1.0, 2**-9], [1.0, 0.0]], jnp.bfloat16)
    similarities, positions = search.top_k(np.ones((1, 2), np.float32), rows, 2)
    assert (similarities.tolist(), positions.tolist()) == ([[1.0 + 2**-9, 1.0]], [[0, 1]])


@pytest.mark.parametrize("k", [0, 4])
def test_a_k_that_the_rows_cannot_give_is_refused(k):
    with pytest.raises(UserError, match=f"1 to 3.*got {k}"):
        search.top_k(np.ones((1, 2)), np.ones((3, 2)), k)
