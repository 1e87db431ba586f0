"""A plan is judged on specs and shapes alone, and what makes no sense is refused in one sentence."""

from dataclasses import replace

import pytest

from elm_jax.errors import UserError
from elm_jax.merging import table
from elm_jax.merging.parameter_groups import group_parameters
from elm_jax.merging.plan import plan_merge, require_statistics
from elm_jax.records import ExpertSpec

from .conftest import ADAPTER, KINDS, QUERY, SHAPES, WO, D, F

ON_CHANGES = [name for name, method in table.MERGES.items() if method.works_on == "changes"]


def described(kind, name="a"):
    return ExpertSpec(f"{name}/p", kind, "base", tuple(SHAPES[kind]), (name,), 10), SHAPES[kind]


def two(kind):
    return [described(kind, "a"), described(kind, "b")]


def refused(said, method, experts, weights=None, id=None, **options):
    with pytest.raises(UserError, match=said) as caught:
        plan_merge(method, experts, options, weights=weights, id=id)
    assert "\n" not in str(caught.value)


def test_a_method_is_answered_with_the_nearest():
    refused("'tise'.*'ties'", "tise", two("lora"))


def test_an_option_is_answered_with_the_nearest_and_all_that_there_are():
    refused(
        r"'densety'.*'ties' \(rank, adapters, density, trim, elect, scale\).*'density'",
        "ties",
        two("lora"),
        densety=0.5,
    )
    refused(r"'scale'.*'average'", "average", two("lora"), scale=1.0)


@pytest.mark.parametrize(
    ("method", "option", "value", "said"),
    [
        ("ties", "density", 0.0, "above 0 and at most 1 .*'density', got 0.0"),
        ("ties", "density", 1.1, "'density', got 1.1"),
        ("ties", "density", "half", "got 'half'"),
        ("ties", "density", True, "got True"),
        ("ties", "scale", float("nan"), "'scale', got nan"),
        ("ties", "rank", 0, "at least 1 .*'rank', got 0"),
        ("ties", "rank", 2.0, "'rank', got 2.0"),
        ("dare", "seed", -1, "at least 0 .*'seed', got -1"),
        ("dare", "then", "slerp", "'average' or 'ties' .*'then', got 'slerp'"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(method, option, value, said):
    refused(said, method, two("lora"), **{option: value})


def test_a_whole_number_is_a_number_too():
    assert plan_merge("ties", two("lora"), {"density": 1}).options["density"] == 1.0


def test_an_option_for_another_kind_is_refused():
    refused("'rank' for 'ia3'", "ties", two("ia3"), rank=2)
    refused("'adapters' for 'lora'", "ties", two("lora"), adapters="average")


@pytest.mark.parametrize("method", ON_CHANGES)
def test_a_bottleneck_has_no_change_to_work_on(method):
    refused(
        f"'bottleneck' experts, got '{method}'.* average or concatenate.$",
        method,
        two("bottleneck"),
    )


@pytest.mark.parametrize("method", [name for name in table.MERGES if name != "average"])
@pytest.mark.parametrize("kind", ["dora", "vera", "prompt"])
def test_what_has_no_change_of_its_own_form_is_averaged_and_nothing_else(kind, method):
    plan_merge("average", two(kind))
    refused(f"'{kind}' experts, got '{method}'.* use average.$", method, two(kind))


@pytest.mark.parametrize("kind", ["ia3", "full"])
def test_what_acts_linearly_has_nothing_to_concatenate(kind):
    groups = group_parameters(described(kind)[0].paths)
    able = [name for name, method in table.MERGES.items() if method.find_conflict(groups, {}) is None]
    assert "concatenate" not in able
    refused(f"'{kind}' experts, got 'concatenate'.*" + ".*".join(able), "concatenate", two(kind))


def test_an_adapter_without_its_up_projection_cannot_be_concatenated():
    spec, shapes = described("bottleneck")
    shapes = {path: shape for path, shape in shapes.items() if not path.endswith("up/kernel")}
    lacking = [(replace(spec, paths=tuple(shapes)), shapes)]
    refused(f"'concatenate'.*{ADAPTER} ", "concatenate", lacking)
    refused("'concatenate'", "ties", lacking, adapters="concatenate")


def test_experts_of_two_kinds_bases_or_shapes_are_refused():
    refused("'lora' of 'a/p' and 'ia3' of 'b/p'", "average", [described("lora"), described("ia3", "b")])
    spec, shapes = described("lora", "b")
    refused(
        "'base' of 'a/p' and 't5' of 'b/p'", "ties", [described("lora"), (replace(spec, base="t5"), shapes)]
    )
    wide = {**shapes, f"{QUERY}/lora_a": (2, D, 4)}
    refused(
        rf"{QUERY}/lora_a .*'a/p', got \(2, 6, 4\) in 'b/p'", "concatenate", [described("lora"), (spec, wide)]
    )
    refused("expert", "ties", [])


def test_weights_are_one_an_expert_and_those_that_are_none_are_refused():
    assert plan_merge("ties", two("lora"), weights=[1.0, 3.0]).weights == (0.25, 0.75)
    assert plan_merge("task_arithmetic", two("lora"), weights=[1.0, 3.0]).weights == (1.0, 3.0)
    refused("2 experts, got 1", "ties", two("lora"), weights=[1.0])
    refused("'b/p', got -1.0", "ties", two("lora"), weights=[1.0, -1.0])
    refused("'a/p', got inf", "task_arithmetic", two("lora"), weights=[float("inf"), 1.0])
    refused("above 0", "task_arithmetic", two("lora"), weights=[0.0, 0.0])


def test_adapters_that_are_averaged_take_no_negative_weight():
    how = {"adapters": "average", "scale": 1.0, "weights": [1.0, -1.0]}
    refused("'b/p', got -1.0", "task_arithmetic", two("bottleneck"), **how)


def test_a_name_that_is_no_id_is_refused():
    refused("'both'", "ties", two("lora"), id="both")


GRAMS = {f"{QUERY}/kernel": (2, D, D), f"{WO}/kernel": (2, F, F)}
SQUARES = {f"{QUERY}/kernel": (2, D, D), f"{WO}/kernel": (2, F, D)}


@pytest.mark.parametrize(("method", "shapes"), [("regmean", GRAMS), ("fisher", SQUARES)])
def test_statistics_are_needed_of_every_expert_for_every_kernel_in_its_shape(method, shapes):
    plan = plan_merge(method, two("lora"))
    assert plan.statistics_shapes == shapes
    require_statistics(plan, [shapes, shapes])
    lacking = {f"{QUERY}/kernel": shapes[f"{QUERY}/kernel"]}
    odd = {**shapes, f"{WO}/kernel": (2, 3, 3)}
    for statistics, said in (
        ([shapes], f"2 experts.*'{method}'.*got 1"),
        ([shapes, lacking], f"'b/p' for {WO}/kernel.*got none"),
        ([odd, shapes], rf"'a/p' for {WO}/kernel.*got \(2, 3, 3\)"),
    ):
        with pytest.raises(UserError, match=said):
            require_statistics(plan, statistics)


def test_statistics_that_no_method_reads_are_refused():
    with pytest.raises(UserError, match="'ties'"):
        require_statistics(plan_merge("ties", two("lora")), [{}, {}])


@pytest.mark.parametrize("kind", KINDS)
def test_the_average_takes_every_kind(kind):
    assert plan_merge("average", two(kind)).weights == (0.5, 0.5)
