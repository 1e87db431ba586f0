"""An expert's parameters form groups, each with a form that says what its change is."""

import jax
import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.merging.parameter_groups import group_parameters, weighted_sum
from elm_jax.models import expert_layers, paths
from elm_jax.models.t5 import init_params

from .conftest import ADAPTER, LAST, NORM, QUERY, SHAPES, WO


def forms(owned):
    return {(part.form, part.path, part.stacked) for part in group_parameters(owned)}


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("bottleneck", {("adapter", ADAPTER, True), ("value", NORM, True), ("value", LAST, False)}),
        ("lora", {("lora", f"{QUERY}/kernel", True), ("lora", f"{WO}/kernel", True)}),
        ("ia3", {("vector", f"{QUERY}/ia3_out", True), ("vector", f"{WO}/ia3_in", True)}),
    ],
)
def test_groups_have_the_form_of_their_paths(kind, wanted):
    assert forms(SHAPES[kind]) == wanted


def test_every_leaf_is_in_one_group_and_factors_are_in_order():
    for shapes in SHAPES.values():
        assert sorted(leaf for part in group_parameters(shapes) for leaf in part.leaves) == sorted(shapes)
    (first, *_) = group_parameters(SHAPES["lora"])
    assert [leaf.rpartition("/")[2] for leaf in first.leaves] == ["lora_a", "lora_b"]


@pytest.fixture(scope="module")
def fresh(config):
    """The paths of a base and of a fresh expert of a kind, without a number of either."""
    key = jax.random.key(0)
    base = jax.eval_shape(lambda: init_params(key, config))

    def owned(kind):
        return paths.flatten(jax.eval_shape(lambda base: expert_layers.init_expert(kind, key, base), base))

    return paths.flatten(base), owned


@pytest.mark.parametrize(("kind", "form"), [("bottleneck", "adapter"), ("lora", "lora"), ("ia3", "vector")])
def test_fresh_experts_of_a_t5_have_those_groups(fresh, kind, form):
    of_base, owned = fresh
    groups = group_parameters(owned(kind))
    assert {group.form for group in groups} - {"value"} == {form}
    for group in groups:
        assert (group.path in of_base) == (group.form in ("value", "lora"))


def test_a_full_expert_of_a_t5_is_values_at_the_base_s_paths(fresh):
    of_base, owned = fresh
    groups = group_parameters(owned("full"))
    assert {group.form for group in groups} == {"value"}
    assert [group.path for group in groups] == sorted(of_base)


def test_one_factor_of_lora_without_the_other_is_refused():
    with pytest.raises(UserError, match=f"{QUERY}, got '{QUERY}/lora_a'"):
        group_parameters([f"{QUERY}/lora_a", LAST])


def test_a_weighted_sum_is_in_float32_and_leaves_its_terms_alone():
    one, two = np.float32([1, 2]), np.float32([3, 6])
    np.testing.assert_array_equal(weighted_sum([one, two], [0.75, 0.25]), [1.5, 3.0])
    np.testing.assert_array_equal(one, [1, 2])
    assert weighted_sum([np.float16([1])], [1.0]).dtype == np.float32
