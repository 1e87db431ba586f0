"""WUDI takes the authors' steps of Adam down its loss, by whole matrices and by factors alike."""

import numpy as np
import pytest

from elm_jax.merging.wudi import wudi

from .conftest import LAYERS, QUERY, RANK, change, merge


def by_the_text(changes, weights, steps, rate):
    """Adam in NumPy, on the gradient of the loss as it is written, [out, in] as the authors have it."""
    tasks = [one.T.astype(np.float64) for one in changes]
    merged = sum(weight * task for weight, task in zip(weights, tasks, strict=True))
    mean, square = np.zeros(merged.shape), np.zeros(merged.shape)
    for step in range(1, steps + 1):
        gradient = sum(
            weight * 2 * (merged - task) @ task.T @ task / np.sum(task**2)
            for weight, task in zip(weights, tasks, strict=True)
        )
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        merged = merged - rate * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    return merged.T


@pytest.mark.parametrize("rank", [2, 12])
def test_the_steps_are_those_of_adam_whatever_the_gradient_is_computed_from(rank):
    rng = np.random.default_rng(rank)
    roots, rights = rng.normal(size=(3, 8, rank)), np.linalg.qr(rng.normal(size=(3, 15, rank)))[0]
    changes = [np.float32(root @ right.T) for root, right in zip(roots, rights, strict=True)]
    weights = [0.5, 1.5, 1.0]
    wanted = by_the_text(changes, weights, 40, 0.01)
    # Rows of `rights` are orthogonal, so that a root's square is that of its change.
    got = wudi(changes, [np.float32(root) for root in roots], weights, 40, 0.01)
    np.testing.assert_allclose(got, wanted, atol=2e-4)
    np.testing.assert_allclose(wudi(changes, changes, weights, 40, 0.01), wanted, atol=2e-4)


def test_an_expert_without_a_change_has_no_say():
    changes = list(np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32))
    nothing = np.zeros((4, 3), np.float32)
    with_it = wudi([*changes, nothing], [*changes, nothing], [1.0] * 3, 20, 0.01)
    np.testing.assert_allclose(with_it, wudi(changes, changes, [1.0] * 2, 20, 0.01), atol=1e-6)
    assert not wudi([nothing], [nothing], [1.0]).any()


def test_lora_is_merged_as_products(expert):
    experts = [expert("lora", name) for name in "ab"]
    got = merge("wudi", experts, learning_rate=0.01, steps=5, rank=6)
    for layer in range(LAYERS):
        changes = [change(one, QUERY)[layer] for one in experts]
        wanted = by_the_text(changes, [1.0, 1.0], 5, 0.01)
        np.testing.assert_allclose(change(got, QUERY)[layer], wanted, atol=1e-3)
    assert 2 * RANK < 6
