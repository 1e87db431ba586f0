"""TIES keeps the largest changes, elects their signs, and averages those that agree."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elm_jax.merging.ties import elect_signs, ties, trim
from elm_jax.models import paths

from .conftest import QUERY, WO, change, merge, values


def array(*numbers):
    return np.array(numbers, np.float32)


def test_the_three_steps_by_hand():
    one, two, three = array(4, -1, 0.5, 2), array(2, 3, -0.25, -6), array(-1, -2, 8, 3)
    # Half of each is kept: 4, 2 of the first; 3, -6 of the second; 8, 3 of the third.
    # The sums 4, 3, 8, -1 elect +, +, +, -; the last agrees with the second expert alone.
    np.testing.assert_array_equal(ties([one, two, three], [1 / 3] * 3, 0.5), [4, 3, 8, -6])


def test_values_that_agree_are_averaged_by_weight_and_the_others_left_out():
    one, two, three = array(4), array(1), array(-3)
    np.testing.assert_allclose(ties([one, two, three], [0.25, 0.5, 0.25], 1.0), [2.0])


def test_weights_take_part_in_the_election():
    np.testing.assert_array_equal(ties([array(4), array(-3)], [0.5, 0.5], 1.0), [4])
    np.testing.assert_array_equal(ties([array(4), array(-3)], [0.25, 0.75], 1.0), [-3])


def test_where_every_expert_is_trimmed_nothing_changes():
    np.testing.assert_array_equal(ties([array(1, 5), array(-2, 7)], [0.5, 0.5], 0.5), [0, 6])


def test_a_tie_of_signs_elects_the_positive_one():
    np.testing.assert_array_equal(elect_signs([array(2, -2), array(-2, 2)], [0.5, 0.5]), [2, 2])


@pytest.mark.parametrize(
    ("density", "kept"), [(1.0, 10), (0.95, 9), (0.5, 5), (0.2, 2), (0.19, 1), (0.001, 1)]
)
def test_the_share_of_values_kept_is_rounded_down_but_one_is_left(density, kept):
    change = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
    trimmed = trim(change, density)
    assert np.count_nonzero(trimmed) == kept
    assert np.abs(change[trimmed == 0]).max(initial=0) < np.abs(trimmed[trimmed != 0]).min()


def test_values_as_large_as_the_least_kept_are_kept_wherever_they_stand():
    np.testing.assert_array_equal(trim(array(1, -2, 2, 3), 0.5), [0, -2, 2, 3])
    np.testing.assert_array_equal(trim(array(3, 2, -2, 1), 0.5), [3, 2, -2, 0])


def by_the_paper(changes, weights, density):
    """Value by value, in double precision, from the text of section 3."""
    trimmed = []
    for one in changes:
        order = np.argsort(-np.abs(one), kind="stable")
        kept = np.zeros_like(one, np.float64)
        kept[order[: int(density * len(one))]] = one[order[: int(density * len(one))]]
        trimmed.append(kept)
    merged = np.zeros(len(changes[0]))
    for place in range(len(merged)):
        own = [(float(one[place]), weight) for one, weight in zip(trimmed, weights, strict=True)]
        sign = 1 if sum(value * weight for value, weight in own) >= 0 else -1
        agree = [(value, weight) for value, weight in own if value * sign > 0]
        if agree:
            merged[place] = sum(v * w for v, w in agree) / sum(w for _, w in agree)
    return merged


@given(st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([0.25, 0.5, 0.75, 1.0]))
def test_any_changes_are_merged_as_the_paper_says(seed, experts, density):
    rng = np.random.default_rng(seed)
    changes, weights = rng.normal(size=(experts, 16)).astype(np.float32), rng.dirichlet(np.ones(experts))
    got = ties(list(changes), weights.tolist(), density)
    np.testing.assert_allclose(got, by_the_paper(changes, weights, density), rtol=1e-4, atol=1e-5)


def test_every_layer_is_trimmed_by_itself(expert, toy_base):
    path, base = f"{QUERY}/kernel", paths.flatten(toy_base)
    experts = [expert("full", name) for name in "ab"]
    got = values(merge("ties", experts, base=toy_base, density=0.25, scale=0.5))[path]
    for layer in range(2):
        changes = [(values(one)[path][layer] - base[path][layer]).ravel() for one in experts]
        wanted = base[path][layer] + 0.5 * by_the_paper(changes, [0.5, 0.5], 0.25).reshape(6, 6)
        np.testing.assert_allclose(got[layer], wanted, rtol=1e-4, atol=1e-5)


def test_lora_is_merged_as_products(expert):
    experts = [expert("lora", name) for name in "ab"]
    got = merge("ties", experts, density=0.5, rank=6)
    for path in (QUERY, WO):
        for layer in range(2):
            changes = [change(one, path)[layer].ravel() for one in experts]
            wanted = by_the_paper(changes, [0.5, 0.5], 0.5).reshape(change(got, path)[layer].shape)
            np.testing.assert_allclose(change(got, path)[layer], wanted, rtol=1e-3, atol=1e-4)
    assert got.spec.recipe["error"] < 1e-5
