"""Fisher: each value counts by how much it matters to its expert."""

import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.merging.fisher import fisher

from .conftest import LAST, QUERY, WO, change, merge, values


def array(*numbers):
    return np.array(numbers, np.float32)


def test_values_are_averaged_by_importance_times_weight():
    changes, importance = [array(0, 4), array(4, 8)], [array(3, 1), array(1, 3)]
    np.testing.assert_allclose(fisher(changes, [0.5, 0.5], importance), [1.0, 7.0])
    np.testing.assert_allclose(fisher(changes, [0.25, 0.75], importance), [2.0, 7.6])


def test_what_matters_to_nobody_is_averaged_by_weight():
    nothing = array(0, 0)
    np.testing.assert_allclose(fisher([array(0, 4), array(4, 8)], [0.25, 0.75], [nothing, nothing]), [3, 7])


def test_importance_so_small_that_its_products_vanish_still_counts():
    tiny = array(1e-38)
    np.testing.assert_allclose(
        fisher([array(2e-3), array(4e-3)], [0.5, 0.5], [tiny, 3 * tiny]), [3.5e-3], 1e-3
    )


def test_full_experts_are_merged_without_the_base(expert, statistics):
    experts, known = [expert("full", name) for name in "ab"], statistics("fisher", "full", 2)
    got = values(merge("fisher", experts, statistics=known))
    for path in (f"{QUERY}/kernel", LAST):
        total = known[0][path] + known[1][path]
        wanted = (
            known[0][path] * values(experts[0])[path] + known[1][path] * values(experts[1])[path]
        ) / total
        np.testing.assert_allclose(got[path], wanted, rtol=1e-3, atol=1e-4)


def test_lora_is_weighted_as_products(expert, statistics):
    experts, known = [expert("lora", name) for name in "ab"], statistics("fisher", "lora", 2)
    got = merge("fisher", experts, statistics=known, rank=6)
    (one, two), (f, g) = (change(each, WO) for each in experts), (tree[f"{WO}/kernel"] for tree in known)
    np.testing.assert_allclose(change(got, WO), (f * one + g * two) / (f + g), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_importance_that_is_no_mean_of_squares_is_refused(expert, statistics, bad):
    known = statistics("fisher", "ia3", 2)
    known[1][f"{WO}/ia3_in"][0, 3] = bad
    with pytest.raises(UserError, match=f"'b/p' for {WO}/ia3_in"):
        merge("fisher", [expert("ia3", name) for name in "ab"], statistics=known)
