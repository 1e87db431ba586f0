"""DELLA, breadcrumbs, model stock, SCE and consensus, by hand and by their texts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elm_jax.errors import UserError
from elm_jax.merging.breadcrumbs import keep_middle
from elm_jax.merging.consensus import consensus_mask
from elm_jax.merging.della import keep_probability, prune
from elm_jax.merging.model_stock import interpolation_share
from elm_jax.merging.sce import sce, select_high_variance
from elm_jax.models import paths

from .conftest import LAYERS, QUERY, WO, change, merge, values


def array(*numbers):
    return np.array(numbers, np.float32)


def test_larger_values_of_a_row_are_likelier_kept():
    rows = array([0.1, -3, 2], [5, 0, -1])
    wanted = [[0.4, 0.6, 0.5], [0.6, 0.4, 0.5]]
    np.testing.assert_allclose(keep_probability(rows, 0.5, 0.2), wanted, rtol=1e-6)
    np.testing.assert_allclose(keep_probability(array([7], [8]), 0.5, 0.2), [[0.5], [0.5]])


def test_what_is_kept_is_divided_by_its_probability_or_brought_to_the_old_sum():
    change, chances, draws = array(1, -3, 2), array(0.25, 0.5, 0.4), array(0.2, 0.5, 0.3)
    np.testing.assert_allclose(prune(change, chances, draws), [4, 0, 5])
    np.testing.assert_allclose(prune(change, chances, draws, "l1"), [2, 0, 4])
    np.testing.assert_array_equal(prune(change, chances, array(1, 1, 1), "l1"), [0, 0, 0])


def test_a_change_keeps_its_mean_when_it_is_pruned():
    change = np.tile(array(1, 2, 3, 4), (5000, 1))
    chances = keep_probability(change, 0.6, 0.4)
    draws = np.random.default_rng(0).random(change.shape, np.float32)
    np.testing.assert_allclose(prune(change, chances, draws).mean(axis=0), [1, 2, 3, 4], rtol=0.05)


def test_probabilities_beyond_1_are_refused(expert):
    with pytest.raises(UserError, match=r"0\.95"):
        merge("della", [expert("ia3", name) for name in "ab"], density=0.95, window=0.2)


def test_rows_are_output_units(expert, toy_base):
    path, base = f"{WO}/kernel", paths.flatten(toy_base)
    experts = [expert("full", "a"), expert("full", "b")]
    got = values(merge("breadcrumbs", experts, base=toy_base, keep=0.3, remove=0.2))[path]
    for layer in range(LAYERS):
        wanted = np.zeros(got[layer].shape)
        for one in experts:
            own = values(one)[path][layer] - base[path][layer]
            for unit in range(own.shape[1]):
                # Of ten inputs the two largest are dropped and the next three kept.
                chosen = sorted(range(10), key=lambda row, own=own, unit=unit: -abs(own[row, unit]))[2:5]
                wanted[chosen, unit] += own[chosen, unit] / 2
        np.testing.assert_allclose(got[layer] - base[path][layer], wanted, atol=1e-5)


def test_breadcrumbs_by_hand():
    np.testing.assert_array_equal(keep_middle(array(9, -5, 4, 3, 2), 0.4, 0.2), [0, -5, 4, 0, 0])
    np.testing.assert_array_equal(keep_middle(array(9, -5, 4, 3, 2), 0.4, 0.1), [9, -5, 0, 0, 0])


def test_breadcrumbs_of_the_whole_tensor_are_summed_with_a_scale_of_1(expert):
    experts = [expert("lora", name) for name in "ab"]
    got = merge("breadcrumbs", experts, of="tensor", keep=0.25, remove=0.1, scale=1.0, rank=6)
    for layer in range(LAYERS):
        changes = [change(one, QUERY)[layer] for one in experts]
        kept = [keep_middle(own.ravel(), 0.25, 0.1).reshape(own.shape) for own in changes]
        np.testing.assert_allclose(change(got, QUERY)[layer], sum(kept), atol=1e-4)
        assert [np.count_nonzero(own) for own in kept] == [9, 9]


def cosine(one, two):
    return float(one @ two / np.linalg.norm(one) / np.linalg.norm(two))


@given(st.integers(0, 1000), st.integers(2, 5))
def test_model_stock_takes_the_mean_cosine_over_pairs(seed, experts):
    changes = np.random.default_rng(seed).normal(size=(experts, 3, 20)) + 0.5
    pairs = [
        [cosine(changes[i, row], changes[j, row]) for i in range(experts) for j in range(i)]
        for row in range(3)
    ]
    c = np.array(pairs).mean(axis=1, keepdims=True)
    got = interpolation_share(list(changes.astype(np.float32)))
    np.testing.assert_allclose(got, experts * c / (1 + (experts - 1) * c), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("one", "two", "share"),
    [
        ((1, 0), (2, 0), 1),
        ((1, 0), (0, 3), 0),
        ((1, 0), (1, 3**0.5), 2 / 3),
        ((1, 0), (-2, 0), 0),
        ((0, 0), (1, 1), 0),
    ],
)
def test_model_stock_by_hand(one, two, share):
    got = interpolation_share([array(one), array(two)])
    np.testing.assert_allclose(got, [[share]], atol=1e-6)


def test_model_stock_has_an_angle_for_each_output_unit_if_asked_for(expert, toy_base):
    path, base = f"{WO}/kernel", paths.flatten(toy_base)
    experts = [expert("full", name) for name in "ab"]
    one, two = (values(each)[path][1] - base[path][1] for each in experts)
    by_unit = np.array([cosine(one[:, unit], two[:, unit]) for unit in range(one.shape[1])])
    for by, c in (("filter", by_unit), ("layer", cosine(one.ravel(), two.ravel()))):
        got = values(merge("model_stock", experts, base=toy_base, by=by))[path][1]
        np.testing.assert_allclose(
            got - base[path][1], 2 * c / (1 + c) * (one + two) / 2, rtol=1e-3, atol=1e-4
        )


def test_sce_by_hand():
    changes = [array(4, 1, 1, 0), array(-2, 1, 3, 0)]
    # They differ by most at the first value, next at the third; the two others are in common.
    np.testing.assert_array_equal(select_high_variance(changes, 0.5), [True, False, False, False])
    np.testing.assert_array_equal(select_high_variance(changes, 1.0), [True, False, True, False])
    # Coefficients 16 and 4 of the first value alone; it has the sign of 4 - 2.
    np.testing.assert_allclose(sce(changes, [0.5, 0.5], 0.5, "all"), [4, 1, 1.4, 0], rtol=1e-6)
    np.testing.assert_allclose(sce(changes, [0.5, 0.5], 0.5, "selected"), [4, 0, 0, 0], rtol=1e-6)
    # Weights multiply them: 0.2 · 16 and 0.8 · 4.
    np.testing.assert_allclose(sce(changes, [0.2, 0.8], 0.5, "all"), [4, 1, 2, 0], rtol=1e-6)


def test_consensus_by_hand():
    changes = [array(4, 4, 0, 1), array(4, 0, 0, -1), array(1, 0, 0, 5)]
    total = sum(changes)  # 9, 4, 0, 5; what the others add: 5 5 8, 0 4 4, 0 0 0, 4 6 0
    np.testing.assert_array_equal(consensus_mask(changes, total, 0.5, 1), [True, True, False, True])
    np.testing.assert_array_equal(consensus_mask(changes, total, 0.5, 2), [True, False, False, False])
    np.testing.assert_array_equal(consensus_mask(changes, total, 0.0, 3), [True, False, False, True])


def test_a_consensus_is_the_mean_where_two_agree_and_the_base_elsewhere(expert):
    experts, path = [expert("ia3", name) for name in "abc"], f"{WO}/ia3_in"
    changes = [values(one)[path].astype(np.float64) - 1 for one in experts]
    total = sum(changes)
    votes = sum((np.abs(own) > 0.4 * np.abs(total - own)).astype(int) for own in changes)
    assert 0 < (votes >= 2).mean() < 1
    got = values(merge("consensus", experts))[path]
    np.testing.assert_allclose(got, 1 + np.where(votes >= 2, total / 3, 0), rtol=1e-4, atol=1e-5)
    got = values(merge("consensus", experts, scale=1.0, threshold=9))[path]
    np.testing.assert_allclose(got, 1 + np.where(votes == 3, total, 0), rtol=1e-4, atol=1e-5)
