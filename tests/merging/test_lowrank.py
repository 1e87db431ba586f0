"""A change of a kernel is written as two factors, as near as their rank allows."""

import numpy as np
import pytest

from elm_jax.merging import lowrank
from elm_jax.merging.lowrank import factor, squared_error

LARGE = 90


@pytest.fixture(autouse=True)
def _only_the_least_are_small(monkeypatch):
    monkeypatch.setattr(lowrank, "MAX_FULL_SVD_SIZE", 10)


def matrix(inputs, outputs, sizes, seed=0):
    """A matrix of these singular values."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.normal(size=(inputs, len(sizes))))[0]
    right = np.linalg.qr(rng.normal(size=(outputs, len(sizes))))[0]
    return (left * np.asarray(sizes) @ right.T).astype(np.float32)


@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (LARGE, LARGE + 30)])
def test_a_matrix_of_that_rank_is_written_exactly(shape):
    whole = matrix(*shape, [3.0, 2.0, 1.0])
    first, second = factor(whole, 3)
    assert first.shape == (shape[0], 3)
    assert second.shape == (3, shape[1])
    np.testing.assert_allclose(first @ second, whole, atol=1e-5)
    assert squared_error(whole, first, second) < 1e-9


@pytest.mark.parametrize("shape", [(8, 5), (LARGE, LARGE + 30)])
def test_what_is_lost_is_the_smallest_singular_values(shape):
    whole = matrix(*shape, [4.0, 3.0, 2.0, 1.0])
    first, second = factor(whole, 2)
    assert squared_error(whole, first, second) == pytest.approx(2.0**2 + 1.0**2, rel=1e-4)
    np.testing.assert_allclose(np.linalg.norm(first, axis=0), np.sqrt([4.0, 3.0]), rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(second, axis=1), np.sqrt([4.0, 3.0]), rtol=1e-4)


def test_of_a_large_matrix_without_a_gap_it_is_near_the_best():
    whole = matrix(LARGE, LARGE, np.linspace(2.0, 1.0, 80))
    best = np.square(np.linspace(2.0, 1.0, 80)[20:]).sum()
    assert best <= squared_error(whole, *factor(whole, 20)) * (1 + 1e-6) <= 1.01 * best


def test_a_rank_above_the_matrix_s_own_leaves_the_rest_zero():
    first, second = factor(matrix(LARGE, LARGE, [2.0]), 4)
    np.testing.assert_allclose(np.abs(first[:, 1:]).max(), 0, atol=1e-2)
    np.testing.assert_allclose(first @ second, matrix(LARGE, LARGE, [2.0]), atol=1e-5)


@pytest.mark.parametrize("size", [6, LARGE])
def test_no_change_is_written_as_no_change(size):
    first, second = factor(np.zeros((size, size), np.float32), 2)
    np.testing.assert_array_equal(first @ second, np.zeros((size, size)))


def test_the_same_matrix_gives_the_same_factors():
    whole = matrix(LARGE, LARGE, [4.0, 3.0, 2.0])
    for one, other in zip(factor(whole, 2), factor(whole, 2), strict=True):
        np.testing.assert_array_equal(one, other)
