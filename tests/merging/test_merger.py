"""What holds of every method on every kind that it can merge: an expert comes back, order, type, lineage."""

import itertools

import jax
import ml_dtypes
import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.merging import table
from elm_jax.records import Expert

from .conftest import KINDS, LAST, NORM, QUERY, WO, change, merge, values

ON_MATRICES = ("tsvm", "iso_c", "iso_cts", "knots", "wudi")
AVERAGED = ("dora", "vera", "prompt")  # and nothing else
NOTHING = {("concatenate", "ia3"), ("concatenate", "full"), ("regmean", "bottleneck")}
NOTHING |= {(method, kind) for method in ON_MATRICES for kind in ("ia3", "bottleneck")}
NOTHING |= {(method, kind) for method in table.MERGES if method != "average" for kind in AVERAGED}
PAIRS = [pair for pair in itertools.product(table.MERGES, KINDS) if pair not in NOTHING]
ON_CHANGES = [name for name, method in table.MERGES.items() if method.works_on == "changes"]


@pytest.fixture
def merged(expert, toy_base, statistics):
    """Merges experts of these names by a method, with what it needs."""

    def make(method, kind, names, **options):
        if kind == "bottleneck" and method in ON_CHANGES:
            options["adapters"] = options.get("adapters", "average")
        experts = [name if not isinstance(name, str) else expert(kind, name) for name in names]
        known = statistics(method, kind, len(experts))
        return merge(method, experts, base=toy_base, statistics=known, **options)

    return make


def assert_same(one, other, tolerance=1e-6):
    assert values(one).keys() == values(other).keys()
    for path, value in values(one).items():
        np.testing.assert_allclose(value, values(other)[path], rtol=tolerance, atol=tolerance)


def effects(of):
    """What an expert does, where the same can be done by several trees."""
    flat = values(of)
    if of.spec.kind != "lora":
        return flat
    return {path: change(of, path.removesuffix("/lora_a")) for path in flat if path.endswith("lora_a")}


@pytest.mark.parametrize(("method", "kind"), PAIRS)
@pytest.mark.parametrize("copies", [1, 2, 3])
def test_an_expert_alone_or_several_times_comes_back(merged, expert, method, kind, copies):
    assert_same(merged(method, kind, ["a"] * copies), expert(kind, "a"))


@pytest.mark.parametrize(("method", "kind"), PAIRS)
def test_an_expert_comes_back_where_the_others_weigh_nothing(merged, expert, method, kind):
    assert_same(merged(method, kind, ["b", "a", "c"], weights=[0.0, 1.0, 0.0]), expert(kind, "a"))


NEAR_ITS_EXPERTS = [pair for pair in PAIRS if pair[0] not in ("concatenate", "breadcrumbs", *ON_MATRICES)]
NEAR_ITS_EXPERTS.remove(("average", "vera"))
"""Without what is wider, drops the largest values, makes a direction of the difference, or wants none."""


@pytest.mark.parametrize(("method", "kind"), NEAR_ITS_EXPERTS)
def test_two_nearly_equal_experts_give_nearly_them(merged, expert, method, kind):
    # By the formula itself: without the rule that experts which are one and the same come back as they are.
    one = expert(kind, "a")
    nudged = Expert(one.spec, jax.tree.map(lambda value: value * np.float32(1 + 1e-6), one.params))
    options = {"density": 1.0} if method in ("ties", "dare", "della") else {}
    options |= {"window": 0.0} if method == "della" else {}
    for path, value in effects(merged(method, kind, ["a", nudged], **options)).items():
        np.testing.assert_allclose(value, effects(one)[path], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("method", "kind"), [pair for pair in PAIRS if table.MERGES[pair[0]].symmetric])
def test_order_matters_only_where_the_method_says_so(expert, toy_base, statistics, method, kind):
    weights, options = np.array([0.2, 0.3, 0.5]), {}
    if kind == "bottleneck" and method in ON_CHANGES:
        options = {"adapters": "average"}
    experts, known = [expert(kind, name) for name in "abc"], statistics(method, kind, 3)

    def in_order(order):
        read = None if known is None else [known[number] for number in order]
        return merge(
            method,
            [experts[number] for number in order],
            weights=weights[order].tolist(),
            base=toy_base,
            statistics=read,
            **options,
        )

    there, back = in_order([0, 1, 2]), in_order([2, 0, 1])
    for path, value in effects(there).items():
        other = effects(back)[path]
        if method == "concatenate":  # the same columns in another order
            value, other = np.sort(value, axis=None), np.sort(other, axis=None)
        np.testing.assert_allclose(value, other, rtol=1e-5, atol=1e-5)


def test_slerp_of_three_minds_the_order_as_it_says(merged):
    there, back = merged("slerp", "full", ["a", "b", "c"]), merged("slerp", "full", ["c", "b", "a"])
    assert np.abs(values(there)[LAST] - values(back)[LAST]).max() > 1e-3


@pytest.mark.parametrize(("method", "kind"), PAIRS)
def test_the_result_has_the_type_of_the_experts(expert, toy_base, statistics, method, kind):
    options = {"adapters": "average"} if kind == "bottleneck" and method in ON_CHANGES else {}
    experts = [expert(kind, name, ml_dtypes.bfloat16) for name in "ab"]
    got = merge(method, experts, base=toy_base, statistics=statistics(method, kind, 2), **options)
    assert {value.dtype for value in values(got).values()} == {np.dtype(ml_dtypes.bfloat16)}
    wide = [experts[0], expert(kind, "b")]
    got = merge(method, wide, base=toy_base, statistics=statistics(method, kind, 2), **options)
    assert {value.dtype for value in values(got).values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("method", ON_CHANGES)
def test_half_precision_is_merged_in_float32_and_cast_once(expert, toy_base, statistics, method):
    known = statistics(method, "full", 2)
    halves = [expert("full", name, ml_dtypes.bfloat16) for name in "ab"]

    def widened(of):
        return Expert(of.spec, jax.tree.map(lambda value: value.astype(np.float32), of.params))

    in_half = merge(method, halves, base=toy_base, statistics=known)
    in_full = merge(method, list(map(widened, halves)), base=toy_base, statistics=known)
    for path, value in values(in_half).items():
        np.testing.assert_array_equal(value, values(in_full)[path].astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize(("method", "kind"), PAIRS)
def test_the_experts_and_the_base_stay_as_they_are(merged, expert, toy_base, method, kind):
    before = jax.tree.map(np.copy, toy_base)
    experts = [expert(kind, name) for name in "ab"]
    merged(method, kind, experts)
    for one, name in zip(experts, "ab", strict=True):
        assert_same(one, expert(kind, name), 0)
    jax.tree.map(np.testing.assert_array_equal, toy_base, before)


def test_the_merged_expert_says_what_it_is_made_of(merged):
    spec = merged("ties", "lora", ["a", "b"], weights=[3.0, 1.0], density=0.5).spec
    assert spec.datasets == ("a", "b")
    assert spec.steps == 10
    recipe = dict(spec.recipe)
    assert 0 < recipe.pop("error") < 1
    assert "ΔW was merged" in recipe.pop("note")
    assert recipe == {
        "method": "ties",
        "merged_from": ["a/p", "b/p"],
        "weights": [0.75, 0.25],
        "options": {"density": 0.5, "trim": "network", "elect": "unweighted", "scale": 1.0},
    }
    assert spec.id.startswith("merged/ties-")


def test_what_goes_in_makes_the_name(merged):
    ids = {
        merged("dare", "ia3", ["a", "b"]).spec.id,
        merged("dare", "ia3", ["a", "b"], seed=1).spec.id,
        merged("dare", "ia3", ["a", "b"], weights=[0.4, 0.6]).spec.id,
        merged("ties", "ia3", ["a", "b"]).spec.id,
        merged("ties", "ia3", ["a", "c"]).spec.id,
    }
    assert len(ids) == 5
    assert merged("dare", "ia3", ["a", "b"], id="mine/both").spec.id == "mine/both"


def test_other_statistics_make_another_name(expert, statistics):
    experts, known = [expert("ia3", name) for name in "ab"], statistics("fisher", "ia3", 2)
    one = merge("fisher", experts, statistics=known)
    other = merge("fisher", experts, statistics=known[::-1])
    assert one.spec.id != other.spec.id


def test_merging_the_merged_keeps_all_datasets(expert):
    both = merge("average", [expert("ia3", "a"), expert("ia3", "b")])
    assert merge("average", [both, expert("ia3", "c")]).spec.datasets == ("a", "b", "c")


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare", "slerp"])
def test_full_experts_want_the_base_that_they_change(expert, toy_base, method):
    experts = [expert("full", name) for name in "ab"]
    with pytest.raises(UserError, match=f"base's parameters.*'{method}'"):
        merge(method, experts)
    narrow = {**toy_base, "token_embedder": {"embedding": np.zeros((8, 6), np.float32)}}
    with pytest.raises(UserError, match=r"token_embedder/embedding.*\(7, 6\).*got \(8, 6\)"):
        merge(method, experts, base=narrow)
    merge(method, [expert("lora", name) for name in "ab"])


def test_merged_lora_has_the_rank_that_is_asked_for_and_says_what_that_costs(merged):
    exact, cut = (merged("task_arithmetic", "lora", ["a", "b"], **options) for options in ({}, {"rank": 1}))
    assert values(exact)[f"{QUERY}/lora_a"].shape == (2, 6, 4)
    assert exact.spec.recipe["error"] < 1e-5
    assert values(cut)[f"{QUERY}/lora_a"].shape == (2, 6, 1)
    whole = [change(exact, path) for path in (QUERY, WO)]
    off = [found - change(cut, path) for found, path in zip(whole, (QUERY, WO), strict=True)]
    told = np.sqrt(sum(map(np.sum, map(np.square, off))) / sum(map(np.sum, map(np.square, whole))))
    assert cut.spec.recipe["error"] == pytest.approx(told, abs=1e-4)


def test_a_single_expert_can_be_cut_to_a_lower_rank_or_be_scaled(merged, expert):
    assert values(merged("task_arithmetic", "lora", ["a"], rank=1))[f"{QUERY}/lora_a"].shape == (2, 6, 1)
    double = merged("task_arithmetic", "lora", ["a", "a"], scale=1.0)
    np.testing.assert_allclose(
        change(double, QUERY), 2 * change(expert("lora", "a"), QUERY), rtol=1e-4, atol=1e-5
    )
    assert values(double)[f"{QUERY}/lora_a"].shape == (2, 6, 2)


def test_adapters_go_by_a_method_of_their_own_and_norm_scales_by_the_one_that_was_named(expert, toy_base):
    experts = [expert("bottleneck", name) for name in "ab"]
    got = merge("task_arithmetic", experts, base=toy_base, adapters="concatenate", scale=1.0)
    beside = merge("concatenate", experts)
    for path, value in values(got).items():
        if "_adapter" in path:
            np.testing.assert_array_equal(value, values(beside)[path])
    of_base = toy_base["encoder"]["layers"]["pre_mlp_layer_norm"]["scale"]
    wanted = values(experts[0])[NORM] + values(experts[1])[NORM] - of_base
    np.testing.assert_allclose(values(got)[NORM], wanted, rtol=1e-5, atol=1e-5)
    assert "side by side" in got.spec.recipe["note"]


@pytest.mark.parametrize("adapters", ["average", "concatenate"])
def test_scaling_an_expert_s_change_leaves_its_adapters_as_they_are(merged, expert, toy_base, adapters):
    got = values(merged("task_arithmetic", "bottleneck", ["a", "a"], adapters=adapters, scale=1.0))
    one, of_base = values(expert("bottleneck", "a")), toy_base["decoder"]["decoder_norm"]["scale"]
    for path, value in got.items():
        if "_adapter" in path:
            np.testing.assert_array_equal(value, one[path])
    np.testing.assert_allclose(got[LAST], 2 * one[LAST] - of_base, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["regmean", "fisher"])
def test_a_merge_by_statistics_wants_them(expert, toy_base, method):
    with pytest.raises(UserError, match=f"2 experts.*'{method}'.*got 0"):
        merge(method, [expert("lora", name) for name in "ab"], base=toy_base)
