"""The average is the paper's merge, and gives back what was one expert all along."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.experts import compatibility
from elm_jax.models import paths
from elm_jax.records import Expert, ExpertSpec

from .conftest import merge

DOWN = "encoder/layers/mlp_adapter/down/kernel"
SCALE = "decoder/decoder_norm/scale"


def expert(name, down, scale, **changes):
    flat = {DOWN: np.asarray(down, np.float32), SCALE: np.asarray(scale, np.float32)}
    spec = ExpertSpec(
        id=f"{name}/p", kind="bottleneck", base="base", paths=tuple(flat), datasets=(name,), steps=10
    )
    return Expert(replace(spec, **changes), paths.unflatten(flat))


def random(name, seed):
    rng = np.random.default_rng(seed)
    return expert(name, rng.normal(size=(2, 4, 3)), rng.normal(size=4))


ONE = expert("a", [[[1.0], [2.0]]], [1.0, 1.0])
TWO = expert("b", [[[3.0], [6.0]]], [2.0, 3.0], steps=30)


def average(experts, weights=None, **options):
    return merge("average", experts, weights=weights, **options)


def values(merged):
    return paths.flatten(merged.params)


def test_vera_experts_keep_the_matrices_that_they_share_and_are_refused_with_others():
    shared = {"vera/vera_a": np.float32([[0.1, 0.7]]), "vera/vera_b": np.float32([[0.3], [0.9]])}

    def vera(name, value, **matrices):
        flat = {**shared, **matrices}
        flat |= {f"encoder/layers/mlp/wo/lambda_{leaf}": np.full((1, 2), value, np.float32) for leaf in "bd"}
        spec = ExpertSpec(f"{name}/p", "vera", "base", tuple(flat), (name,), 10)
        return Expert(spec, paths.unflatten(flat))

    merged = values(average([vera("a", 1.0), vera("b", 2.0), vera("c", 6.0)]))
    np.testing.assert_allclose(merged["encoder/layers/mlp/wo/lambda_b"], [[3.0, 3.0]])
    assert all(merged[path].tobytes() == value.tobytes() for path, value in shared.items())
    with pytest.raises(UserError, match=r"share their matrices, got others at 'vera/vera_a'"):
        average([vera("a", 1.0), vera("b", 2.0, **{"vera/vera_a": np.float32([[0.2, 0.7]])})])


def test_every_tensor_is_averaged_norm_scales_included():
    merged = values(average([ONE, TWO]))
    np.testing.assert_array_equal(merged[DOWN], [[[2.0], [4.0]]])
    np.testing.assert_array_equal(merged[SCALE], [1.5, 2.0])


def test_weights_count_by_their_share():
    merged = values(average([ONE, TWO], [3.0, 1.0]))
    np.testing.assert_array_equal(merged[DOWN], [[[1.5], [3.0]]])
    np.testing.assert_array_equal(merged[SCALE], [1.25, 1.5])


@pytest.mark.parametrize("weights", [None, [0.1], [7.0]])
def test_one_expert_comes_back_exactly(weights):
    alone = random("a", 0)
    for path, value in values(average([alone], weights)).items():
        np.testing.assert_array_equal(value, paths.flatten(alone.params)[path])


@pytest.mark.parametrize("copies", [2, 3, 7])
def test_the_same_expert_several_times_gives_it_back(copies):
    alone = random("a", 0)
    for path, value in values(average([alone] * copies)).items():
        np.testing.assert_allclose(value, paths.flatten(alone.params)[path], rtol=1e-6)


def test_order_does_not_matter():
    experts, weights = [random(name, seed) for seed, name in enumerate("abc")], [0.2, 0.3, 0.5]
    there, back = average(experts, weights), average(experts[::-1], weights[::-1])
    for path, value in values(there).items():
        np.testing.assert_allclose(value, values(back)[path], rtol=1e-6, atol=1e-6)
    assert there.spec.datasets == back.spec.datasets


def test_half_precision_is_summed_in_float32_and_cast_once():
    # Of 64 + 0.25 + 0.25 + 0.5 a sum in bfloat16 loses both quarters; the mean itself, 65, it can hold.
    def half(value):
        flat = {DOWN: jnp.full((1, 2, 1), value, jnp.bfloat16), SCALE: jnp.full(2, value, jnp.bfloat16)}
        return Expert(ONE.spec, paths.unflatten(flat))

    merged = values(average([half(256.0), half(1.0), half(1.0), half(2.0)]))
    assert merged[SCALE].dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(merged[SCALE], np.float32), [65.0, 65.0])


def test_the_spec_says_what_it_was_merged_from():
    spec = average([ONE, TWO], [3.0, 1.0]).spec
    note = spec.recipe["note"]
    assert "two factors of every adapter were averaged, not their product" in note
    assert spec.recipe == {
        "method": "average",
        "merged_from": ["a/p", "b/p"],
        "weights": [0.75, 0.25],
        "note": note,
    }
    assert (spec.datasets, spec.steps, spec.kind, spec.base) == (("a", "b"), 30, "bottleneck", "base")
    assert spec.paths == ONE.spec.paths
    assert spec.id.startswith("merged/average-")
    assert spec.id != average([ONE, TWO]).spec.id
    assert average([ONE, TWO], id="mine/both").spec.id == "mine/both"


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1.0], "2 experts, got 1"),
        ([1.0, -1.0], "'b/p', got -1.0"),
        ([float("nan"), 1.0], "'a/p', got nan"),
        ([0.0, 0.0], "weight above 0"),
    ],
)
def test_weights_that_make_no_mean_are_refused(weights, said):
    with pytest.raises(UserError, match=said):
        average([ONE, TWO], weights)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            expert("b", [[[3.0], [6.0]]], [2.0, 3.0], kind="lora"),
            "'bottleneck' of 'a/p' and 'lora' of 'b/p'",
        ),
        (expert("b", [[[3.0], [6.0]]], [2.0, 3.0], base="t5"), "'base' of 'a/p' and 't5' of 'b/p'"),
        (
            expert("b", [[[3.0, 6.0]]], [2.0, 3.0]),
            rf"{DOWN} as \(1, 2, 1\) .*'a/p', got \(1, 1, 2\) in 'b/p'",
        ),
        (expert("b", [[[3.0], [6.0]]], [2.0, 3.0], paths=(DOWN,)), f"'{SCALE}'"),
    ],
)
def test_experts_that_do_not_fit_are_refused_by_name(other, said):
    with pytest.raises(UserError, match=said):
        average([ONE, TWO, other])


def test_a_path_that_one_expert_lacks_is_named():
    spec = replace(TWO.spec, paths=(DOWN,))
    lacking = Expert(spec, paths.unflatten({DOWN: np.ones((1, 2, 1), np.float32)}))
    with pytest.raises(UserError, match=f"{SCALE} .*'a/p', got absent in 'b/p'"):
        average([ONE, lacking])


def test_no_expert_makes_no_mean():
    with pytest.raises(UserError):
        average([])


def test_shapes_go_by_the_same_paths_as_everywhere():
    assert list(compatibility.shapes_by_path(ONE.params)) == list(paths.flatten(ONE.params))
