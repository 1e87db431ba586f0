"""TIES keeps the largest changes, elects their signs, and averages those that agree."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_jax.merging.magnitudes import find_thresholds
from elm_jax.merging.ties import elect_signs, trim_network, trim_tensor
from elm_jax.models import paths

from .conftest import QUERY, WO, change, merge, values


def array(*numbers):
    return np.array(numbers, np.float32)


def trimmed(changes, density):
    return [trim_tensor(one, density) for one in changes]


def test_the_three_steps_by_hand():
    one, two, three = array(4, -1, 0.5, 2), array(2, 3, -0.25, -6), array(-1, -2, 8, 3)
    # Half of each is kept: 4, 2 of the first; 3, -6 of the second; 8, 3 of the third.
    # The sums 4, 3, 8, -1 elect +, +, +, -; the last agrees with the second expert alone.
    kept = trimmed([one, two, three], 0.5)
    np.testing.assert_array_equal(elect_signs(kept, [1 / 3] * 3), [4, 3, 8, -6])


def test_a_network_keeps_its_share_wherever_it_lies_and_one_value_more():
    # Of six values a third, two, and one more: 9, 8 and 7 of the first expert, all in one layer; of
    # the second 6 in the first layer, -5 and 4 in the other.
    layers = [[array(9, 8, 7), array(6, 0, 1)], [array(3, 2, 1), array(-5, 4, 2)]]
    merge_layer = trim_network(lambda: layers, [0.5, 0.5], 1 / 3)
    np.testing.assert_array_equal(merge_layer(layers[0]), [7.5, 8, 7])
    np.testing.assert_array_equal(merge_layer(layers[1]), [-5, 4, 0])


@pytest.mark.parametrize(("rest", "elected"), [(-1.0, -2.0), (1.0, 2.0)])
def test_a_sum_of_nothing_takes_the_sign_that_most_of_the_network_has(rest, elected):
    layers = [[array(2), array(-2)], [array(rest), array(rest)]]
    assert trim_network(lambda: layers, [0.5, 0.5], 1.0)(layers[0]) == elected


@settings(deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.01, 0.2, 0.5, 0.99, 1.0]))
def test_thresholds_are_those_of_all_layers_sorted(seed, density):
    rng = np.random.default_rng(seed)
    # Few different values, so that many are equal, and layers of unlike scale.
    layers = [
        list((rng.integers(-3, 4, (2, size)) * 10.0**scale).astype(np.float32))
        for scale, size in enumerate(rng.integers(1, 40, 3))
    ]
    found = find_thresholds(lambda: layers, 2, density)
    for number in range(2):
        every = np.sort(np.abs(np.concatenate([layer[number] for layer in layers])))
        assert found[number] == every[max(0, len(every) - int(len(every) * density) - 1)]


def test_values_that_agree_are_averaged_by_weight_and_the_others_left_out():
    np.testing.assert_allclose(elect_signs([array(4), array(1), array(-3)], [0.25, 0.5, 0.25]), [2.0])


def test_weights_take_part_in_the_election_unless_votes_are_given():
    changes = [array(4), array(-3)]
    np.testing.assert_array_equal(elect_signs(changes, [0.5, 0.5]), [4])
    np.testing.assert_array_equal(elect_signs(changes, [0.25, 0.75]), [-3])
    np.testing.assert_array_equal(elect_signs(changes, [0.25, 0.75], votes=[1.0, 1.0]), [4])


def test_where_every_expert_is_trimmed_nothing_changes():
    kept = trimmed([array(1, 5), array(-2, 7)], 0.5)
    np.testing.assert_array_equal(elect_signs(kept, [0.5, 0.5]), [0, 6])


def test_a_tie_of_signs_elects_the_positive_one():
    np.testing.assert_array_equal(elect_signs([array(2, -2), array(-2, 2)], [0.5, 0.5]), [2, 2])


@pytest.mark.parametrize(
    ("density", "kept"), [(1.0, 10), (0.95, 9), (0.5, 5), (0.2, 2), (0.19, 1), (0.001, 1)]
)
def test_the_share_of_values_kept_is_rounded_down_but_one_is_left(density, kept):
    change = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
    left = trim_tensor(change, density)
    assert np.count_nonzero(left) == kept
    assert np.abs(change[left == 0]).max(initial=0) < np.abs(left[left != 0]).min()


def test_values_as_large_as_the_least_kept_are_kept_wherever_they_stand():
    np.testing.assert_array_equal(trim_tensor(array(1, -2, 2, 3), 0.5), [0, -2, 2, 3])
    np.testing.assert_array_equal(trim_tensor(array(3, 2, -2, 1), 0.5), [3, 2, -2, 0])


def by_the_paper(changes, weights, density):
    """Value by value, in double precision, from the text of section 3, as `peft` counts."""
    kept = []
    for one in changes:
        order = np.argsort(-np.abs(one), kind="stable")
        large = np.zeros_like(one, np.float64)
        large[order[: int(density * len(one))]] = one[order[: int(density * len(one))]]
        kept.append(large)
    merged = np.zeros(len(changes[0]))
    for place in range(len(merged)):
        own = [(float(one[place]), weight) for one, weight in zip(kept, weights, strict=True)]
        sign = 1 if sum(value * weight for value, weight in own) >= 0 else -1
        agree = [(value, weight) for value, weight in own if value * sign > 0]
        if agree:
            merged[place] = sum(v * w for v, w in agree) / sum(w for _, w in agree)
    return merged


@given(st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([0.25, 0.5, 0.75, 1.0]))
def test_any_changes_are_merged_as_the_paper_says(seed, experts, density):
    rng = np.random.default_rng(seed)
    changes, weights = rng.normal(size=(experts, 16)).astype(np.float32), rng.dirichlet(np.ones(experts))
    got = elect_signs(trimmed(changes, density), weights.tolist())
    np.testing.assert_allclose(got, by_the_paper(changes, weights, density), rtol=1e-4, atol=1e-5)


def changes_of(experts, base):
    """The changes of full experts as one long vector each, and where each path begins and ends in it."""
    flat = [values(one) for one in experts]
    long = [np.concatenate([(own[path] - base[path]).ravel() for path in sorted(base)]) for own in flat]
    ends = np.cumsum([base[path].size for path in sorted(base)])
    return long, {
        path: slice(end - base[path].size, end) for path, end in zip(sorted(base), ends, strict=True)
    }


def test_full_experts_are_trimmed_over_the_whole_network(expert, toy_base):
    base = paths.flatten(toy_base)
    experts = [expert("full", name) for name in "ab"]
    long, places = changes_of(experts, base)
    # One more than a quarter is kept.
    wanted = by_the_paper(long, [0.5, 0.5], (int(0.25 * len(long[0])) + 1.5) / len(long[0]))
    got = values(merge("ties", experts, base=toy_base, density=0.25, scale=0.5))
    for path, place in places.items():
        merged = base[path] + 0.5 * wanted[place].reshape(base[path].shape)
        np.testing.assert_allclose(got[path], merged, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("trim", "more"), [("tensor", 1.5), ("peft", 0.5)])
def test_or_every_layer_by_itself(expert, toy_base, trim, more):
    path, base = f"{QUERY}/kernel", paths.flatten(toy_base)
    experts = [expert("full", name) for name in "ab"]
    got = values(merge("ties", experts, base=toy_base, density=0.25, trim=trim))[path]
    for layer in range(2):
        changes = [(values(one)[path][layer] - base[path][layer]).ravel() for one in experts]
        wanted = base[path][layer] + by_the_paper(changes, [0.5, 0.5], (9 + more) / 36).reshape(6, 6)
        np.testing.assert_allclose(got[layer], wanted, rtol=1e-4, atol=1e-5)


def test_weights_take_part_in_the_election_of_a_merge_if_asked_for(expert):
    experts = [expert("ia3", name) for name in "ab"]
    path = f"{WO}/ia3_in"
    one, two = (values(each)[path] - 1 for each in experts)
    opposed = (one * two < 0) & (np.abs(one) > np.abs(two)) & (0.2 * np.abs(one) < 0.8 * np.abs(two))
    assert opposed.any()
    for elect, winner in (("unweighted", one), ("weighted", two)):
        got = values(merge("ties", experts, weights=[0.2, 0.8], density=1.0, elect=elect))[path]
        np.testing.assert_allclose(got[opposed], 1 + winner[opposed], rtol=1e-5)


def test_lora_is_merged_as_products(expert):
    experts = [expert("lora", name) for name in "ab"]
    got = merge("ties", experts, density=0.5, trim="peft", rank=6)
    for path in (QUERY, WO):
        for layer in range(2):
            changes = [change(one, path)[layer].ravel() for one in experts]
            wanted = by_the_paper(changes, [0.5, 0.5], 0.5).reshape(change(got, path)[layer].shape)
            np.testing.assert_allclose(change(got, path)[layer], wanted, rtol=1e-3, atol=1e-4)
    assert got.spec.recipe["error"] < 1e-5
