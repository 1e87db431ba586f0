"""DARE drops changes at random and enlarges the rest, the same ones for the same seed, expert and tensor."""

import numpy as np
import pytest

from elm_jax.merging.dare import draw_numbers, drop_values
from elm_jax.merging.ties import elect_signs

from .conftest import WO, merge, values

PATH = f"{WO}/ia3_in"


def test_what_is_kept_is_enlarged():
    change = np.array([1.0, -2.0, 3.0, -4.0], np.float32)
    dropped = drop_values(change, 0.25, np.array([True, False, True, False]))
    np.testing.assert_array_equal(dropped, [4.0, 0.0, 12.0, 0.0])


def test_a_density_of_one_drops_nothing():
    assert (draw_numbers((50, 50), 0, "a/p", "q", 0) < 1.0).all()


def test_as_many_are_dropped_as_asked_for_and_the_mean_stays():
    ones = np.ones(20_000, np.float32)
    dropped = drop_values(ones, 0.3, draw_numbers(ones.shape, 0, "a/p", "q/kernel", 0) < 0.3)
    assert np.count_nonzero(dropped) == pytest.approx(6000, abs=300)  # 4.6 standard deviations
    assert dropped.mean() == pytest.approx(1.0, abs=0.05)


def test_what_is_dropped_depends_on_seed_expert_tensor_and_layer():
    told = [
        (0, "a/p", "q", 0),
        (1, "a/p", "q", 0),
        (0, "b/p", "q", 0),
        (0, "a/p", "k", 0),
        (0, "a/p", "q", 1),
    ]
    drawn = [tuple(draw_numbers((40,), *words).tolist()) for words in told]
    assert len(set(drawn)) == len(told)
    assert tuple(draw_numbers((40,), *told[0]).tolist()) == drawn[0]


def by_hand(experts, layer, density, seed):
    """What is left of the changes of a vector."""
    changed = [(values(one)[PATH][layer] - 1, one.spec.id) for one in experts]
    return [
        drop_values(own, density, draw_numbers(own.shape, seed, name, PATH, layer) < density)
        for own, name in changed
    ]


@pytest.mark.parametrize("then", ["average", "ties"])
def test_what_is_left_is_averaged_or_goes_through_the_election(expert, then):
    experts = [expert("ia3", name) for name in "ab"]
    got = values(merge("dare", experts, weights=[3.0, 1.0], density=0.4, seed=5, then=then, scale=2.0))[PATH]
    for layer in range(2):
        left = by_hand(experts, layer, 0.4, 5)
        both = elect_signs(left, [0.75, 0.25]) if then == "ties" else 0.75 * left[0] + 0.25 * left[1]
        np.testing.assert_allclose(got[layer], 1 + 2 * both, rtol=1e-5, atol=1e-5)


def test_the_same_seed_gives_the_same_expert_and_another_another(expert):
    experts = [expert("ia3", name) for name in "ab"]
    one, again, other = (values(merge("dare", experts, seed=seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one[PATH], again[PATH])
    assert np.abs(one[PATH] - other[PATH]).max() > 0.01
