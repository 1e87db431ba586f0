"""An expert falls into parts, each with a form that says what its change is."""

import jax
import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.merging.parts import mean, parts_of
from elm_jax.models import expert_layers, paths
from elm_jax.models.t5 import init_params

from .conftest import ADAPTER, LAST, NORM, QUERY, SHAPES, WO


def forms(owned):
    return {(part.form, part.path, part.stacked) for part in parts_of(owned)}


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("bottleneck", {("adapter", ADAPTER, True), ("value", NORM, True), ("value", LAST, False)}),
        ("lora", {("lora", f"{QUERY}/kernel", True), ("lora", f"{WO}/kernel", True)}),
        ("ia3", {("vector", f"{QUERY}/ia3_out", True), ("vector", f"{WO}/ia3_in", True)}),
    ],
)
def test_parts_have_the_form_of_their_paths(kind, wanted):
    assert forms(SHAPES[kind]) == wanted


def test_every_leaf_is_in_one_part_and_factors_are_in_order():
    for shapes in SHAPES.values():
        assert sorted(leaf for part in parts_of(shapes) for leaf in part.leaves) == sorted(shapes)
    (first, *_) = parts_of(SHAPES["lora"])
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
def test_fresh_experts_of_a_t5_have_those_parts(fresh, kind, form):
    of_base, owned = fresh
    parts = parts_of(owned(kind))
    assert {part.form for part in parts} - {"value"} == {form}
    for part in parts:
        assert (part.path in of_base) == (part.form in ("value", "lora"))


def test_a_full_expert_of_a_t5_is_values_at_the_base_s_paths(fresh):
    of_base, owned = fresh
    parts = parts_of(owned("full"))
    assert {part.form for part in parts} == {"value"}
    assert [part.path for part in parts] == sorted(of_base)


def test_one_factor_of_lora_without_the_other_is_refused():
    with pytest.raises(
        UserError, match=f"lora_a and lora_b are wanted of {QUERY}, but only '{QUERY}/lora_a'"
    ):
        parts_of([f"{QUERY}/lora_a", LAST])


def test_a_mean_is_summed_in_float32_and_leaves_its_terms_alone():
    one, two = np.float32([1, 2]), np.float32([3, 6])
    np.testing.assert_array_equal(mean([one, two], [0.75, 0.25]), [1.5, 3.0])
    np.testing.assert_array_equal(one, [1, 2])
    assert mean([np.float16([1])], [1.0]).dtype == np.float32
