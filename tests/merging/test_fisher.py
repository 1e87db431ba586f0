"""Fisher: each value counts by how much it matters to its expert."""

import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.merging.fisher import average_by_importance, measure_norms, raise_floor

from .conftest import LAST, QUERY, WO, change, merge, values


def array(*numbers):
    return np.array(numbers, np.float32)


def test_values_are_averaged_by_importance_times_weight():
    changes, importance = [array(0, 4), array(4, 8)], [array(3, 1), array(1, 3)]
    np.testing.assert_allclose(average_by_importance(changes, [0.5, 0.5], importance), [1.0, 7.0])
    np.testing.assert_allclose(average_by_importance(changes, [0.25, 0.75], importance), [2.0, 7.6])


def test_what_matters_to_nobody_is_averaged_by_weight():
    nothing = array(0, 0)
    np.testing.assert_allclose(
        average_by_importance([array(0, 4), array(4, 8)], [0.25, 0.75], [nothing, nothing]), [3, 7]
    )


def test_importance_so_small_that_its_products_vanish_still_counts():
    tiny = array(1e-38)
    np.testing.assert_allclose(
        average_by_importance([array(2e-3), array(4e-3)], [0.5, 0.5], [tiny, 3 * tiny]), [3.5e-3], 1e-3
    )


def test_a_norm_is_that_of_all_layers():
    assert measure_norms([[array(3, 0), array(0, 0)], [array(4), array(0)]]) == [5.0, 1.0]


def test_the_floor_is_that_of_the_first_expert_or_of_all():
    importance = [array(0, 3), array(0, 0)]
    np.testing.assert_array_equal(raise_floor(importance, 2.0, "target"), [[2, 3], [0, 0]])
    np.testing.assert_array_equal(raise_floor(importance, 2.0, "all"), [[2, 3], [2, 2]])


def test_where_nothing_matters_the_target_stays_and_an_expert_counts_by_its_share_of_its_norm(expert):
    experts = [expert("ia3", name) for name in "ab"]
    one, two = (values(each) for each in experts)
    # The second's Fisher is ten times as large everywhere, and says the same; but nothing of one value.
    fisher = {path: np.ones_like(value) for path, value in one.items()}
    fisher[f"{WO}/ia3_in"][0, 3] = 0
    known = [fisher, {path: 10 * value for path, value in fisher.items()}]
    got = values(merge("fisher", experts, statistics=known))[f"{WO}/ia3_in"]
    mean = (one[f"{WO}/ia3_in"] + two[f"{WO}/ia3_in"]) / 2
    mean[0, 3] = one[f"{WO}/ia3_in"][0, 3]
    np.testing.assert_allclose(got, mean, rtol=1e-5)
    both = values(merge("fisher", experts, statistics=known, normalize="none", floor_on="all"))
    wanted = (one[f"{WO}/ia3_in"] + 10 * two[f"{WO}/ia3_in"]) / 11
    wanted[0, 3] = (one[f"{WO}/ia3_in"][0, 3] + two[f"{WO}/ia3_in"][0, 3]) / 2
    np.testing.assert_allclose(both[f"{WO}/ia3_in"], wanted, rtol=1e-5)


def test_full_experts_are_merged_without_the_base(expert, statistics):
    experts, known = [expert("full", name) for name in "ab"], statistics("fisher", "full", 2)
    got = values(merge("fisher", experts, statistics=known, normalize="none"))
    for path in (f"{QUERY}/kernel", LAST):
        total = known[0][path] + known[1][path]
        wanted = (
            known[0][path] * values(experts[0])[path] + known[1][path] * values(experts[1])[path]
        ) / total
        np.testing.assert_allclose(got[path], wanted, rtol=1e-3, atol=1e-4)


def test_lora_is_weighted_as_products(expert, statistics):
    experts, known = [expert("lora", name) for name in "ab"], statistics("fisher", "lora", 2)
    got = merge("fisher", experts, statistics=known, rank=6, normalize="none")
    (one, two), (f, g) = (change(each, WO) for each in experts), (tree[f"{WO}/kernel"] for tree in known)
    np.testing.assert_allclose(change(got, WO), (f * one + g * two) / (f + g), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_importance_that_is_no_mean_of_squares_is_refused(expert, statistics, bad):
    known = statistics("fisher", "ia3", 2)
    known[1][f"{WO}/ia3_in"][0, 3] = bad
    with pytest.raises(UserError, match=f"'b/p' for {WO}/ia3_in"):
        merge("fisher", [expert("ia3", name) for name in "ab"], statistics=known)
