"""Task arithmetic adds to the base what experts change in it."""

import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.merging.task_arithmetic import task_arithmetic
from elm_jax.models import paths

from .conftest import EMBEDDING, LAST, NORM, QUERY, WO, change, merge, values


def test_changes_are_weighted_summed_and_scaled():
    changes = [np.array([1.0, 0.0], np.float32), np.array([3.0, -4.0], np.float32)]
    np.testing.assert_array_equal(task_arithmetic(changes, [1.0, 2.0], 0.5), [3.5, -4.0])


def test_full_experts_are_the_base_and_what_each_changes(expert, toy_base):
    one, two, base = values(expert("full", "a")), values(expert("full", "b")), paths.flatten(toy_base)
    got = values(merge("task_arithmetic", [expert("full", n) for n in "ab"], base=toy_base, scale=0.7))
    for path in (f"{QUERY}/kernel", f"{WO}/kernel", NORM, LAST, EMBEDDING):
        wanted = base[path] + 0.7 * (one[path] - base[path]) + 0.7 * (two[path] - base[path])
        np.testing.assert_allclose(got[path], wanted, rtol=1e-5, atol=1e-5)


def test_lora_is_added_as_products_not_factor_by_factor(expert):
    one, two = expert("lora", "a"), expert("lora", "b")
    got = merge("task_arithmetic", [one, two], weights=[1.0, -2.0], scale=0.5)
    for path in (QUERY, WO):
        wanted = 0.5 * change(one, path) - change(two, path)
        np.testing.assert_allclose(change(got, path), wanted, rtol=1e-4, atol=1e-5)


def test_ia3_is_added_to_one(expert):
    path = f"{QUERY}/ia3_out"
    one, two = expert("ia3", "a"), expert("ia3", "b")
    got = values(merge("task_arithmetic", [one, two], scale=1.0))[path]
    np.testing.assert_allclose(got, values(one)[path] + values(two)[path] - 1, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", [None, [3.0, 1.0]])
def test_without_lambda_it_is_the_weighted_mean(expert, toy_base, weights):
    experts = [expert("full", name) for name in "ab"]
    mean = values(merge("average", experts, weights=weights))
    for path, value in values(merge("task_arithmetic", experts, weights=weights, base=toy_base)).items():
        np.testing.assert_allclose(value, mean[path], rtol=1e-5, atol=1e-6)


def test_a_negative_weight_takes_what_an_expert_learnt_out_of_the_base(expert, toy_base):
    one, base = expert("full", "a"), paths.flatten(toy_base)
    got = values(merge("task_arithmetic", [one], weights=[-1.0], base=toy_base, scale=1.0))
    np.testing.assert_allclose(got[LAST], 2 * base[LAST] - values(one)[LAST], rtol=1e-5, atol=1e-6)


def test_weights_that_make_no_mean_want_lambda(expert):
    with pytest.raises(UserError, match=r"0\.0.*'scale'"):
        merge("task_arithmetic", [expert("ia3", name) for name in "ab"], weights=[1.0, -1.0])
