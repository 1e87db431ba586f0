"""A plan is judged on specs and shapes alone, and what makes no sense is refused in one sentence."""

from dataclasses import replace

import pytest

from elm_jax.errors import UserError
from elm_jax.merging import table
from elm_jax.merging.plan import plan
from elm_jax.records import ExpertSpec

from .conftest import ADAPTER, KINDS, QUERY, SHAPES, WO, D, F

ON_CHANGES = [name for name, method in table.METHODS.items() if method.on == "changes"]


def described(kind, name="a"):
    return ExpertSpec(f"{name}/p", kind, "base", tuple(SHAPES[kind]), (name,), 10), SHAPES[kind]


def two(kind):
    return [described(kind, "a"), described(kind, "b")]


def refused(said, method, experts, **how):
    with pytest.raises(UserError, match=said) as caught:
        plan(method, experts, **how)
    assert "\n" not in str(caught.value)


def test_a_method_is_answered_with_the_nearest():
    refused("No merging method named 'tise'.*Did you mean 'ties'", "tise", two("lora"))


def test_an_option_is_answered_with_the_nearest_and_all_that_there_are():
    refused(
        r"No option named 'densety' in the options of 'ties' \(rank, adapters, density, scale\)"
        r".*Did you mean 'density'",
        "ties",
        two("lora"),
        densety=0.5,
    )
    refused(r"the options of 'average' \(it has none\)", "average", two("lora"), scale=1.0)


@pytest.mark.parametrize(
    ("method", "option", "value", "said"),
    [
        ("ties", "density", 0.0, "A share above 0 and at most 1 is wanted as option 'density', but 0.0 came"),
        ("ties", "density", 1.1, "but 1.1 came"),
        ("ties", "density", "half", "but 'half' came"),
        ("ties", "density", True, "but True came"),
        ("ties", "scale", float("nan"), "A finite number is wanted as option 'scale', but nan came"),
        ("ties", "rank", 0, "A whole number of at least 1 is wanted as option 'rank', but 0 came"),
        ("ties", "rank", 2.0, "but 2.0 came"),
        ("dare", "seed", -1, "A whole number of at least 0 is wanted as option 'seed', but -1 came"),
        ("dare", "then", "slerp", "'average' or 'ties' is wanted as option 'then', but 'slerp' came"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(method, option, value, said):
    refused(said, method, two("lora"), **{option: value})


def test_a_whole_number_is_a_number_too():
    assert plan("ties", two("lora"), density=1).options["density"] == 1.0


def test_an_option_for_another_kind_is_refused():
    refused("Option 'rank' makes no sense for 'ia3' experts", "ties", two("ia3"), rank=2)
    refused("Option 'adapters' makes no sense for 'lora'", "ties", two("lora"), adapters="average")


@pytest.mark.parametrize("method", ON_CHANGES)
def test_a_bottleneck_has_no_change_to_work_on(method):
    refused(
        f"can merge 'bottleneck' experts is wanted, but '{method}' cannot: .*adapters are networks of their "
        "own.* Use average or concatenate.$",
        method,
        two("bottleneck"),
    )


@pytest.mark.parametrize("kind", ["ia3", "full"])
def test_what_acts_linearly_has_nothing_to_concatenate(kind):
    refused(
        f"can merge '{kind}' experts is wanted, but 'concatenate' cannot.*already is the exact average"
        ".*Use average, task_arithmetic, ties, dare, slerp, regmean or fisher.$",
        "concatenate",
        two(kind),
    )


def test_an_adapter_without_its_up_projection_cannot_be_concatenated():
    spec, shapes = described("bottleneck")
    shapes = {path: shape for path, shape in shapes.items() if not path.endswith("up/kernel")}
    lacking = [(replace(spec, paths=tuple(shapes)), shapes)]
    refused(
        f"'concatenate' cannot: it wants .* of every adapter, and {ADAPTER} is not so", "concatenate", lacking
    )
    refused("'concatenate' cannot", "ties", lacking, adapters="concatenate")


def test_experts_of_two_kinds_bases_or_shapes_are_refused():
    refused(
        "one kind, got 'lora' of 'a/p' and 'ia3' of 'b/p'",
        "average",
        [described("lora"), described("ia3", "b")],
    )
    spec, shapes = described("lora", "b")
    refused(
        "one base, got 'base' of 'a/p' and 't5' of 'b/p'",
        "ties",
        [described("lora"), (replace(spec, base="t5"), shapes)],
    )
    wide = {**shapes, f"{QUERY}/lora_a": (2, D, 4)}
    refused(rf"{QUERY}/lora_a .*got \(2, 6, 4\) in 'b/p'", "concatenate", [described("lora"), (spec, wide)])
    refused("at least one expert", "ties", [])


def test_weights_are_one_an_expert_and_those_that_are_none_are_refused():
    assert plan("ties", two("lora"), weights=[1.0, 3.0]).weights == (0.25, 0.75)
    assert plan("task_arithmetic", two("lora"), weights=[1.0, 3.0]).weights == (1.0, 3.0)
    refused("1 came for 2 experts", "ties", two("lora"), weights=[1.0])
    refused("at least 0 is wanted for 'b/p', but -1.0 came", "ties", two("lora"), weights=[1.0, -1.0])
    refused("finite number is wanted for 'a/p'", "task_arithmetic", two("lora"), weights=[float("inf"), 1.0])
    refused("all of them are 0", "task_arithmetic", two("lora"), weights=[0.0, 0.0])


def test_adapters_that_are_averaged_take_no_negative_weight():
    how = {"adapters": "average", "scale": 1.0, "weights": [1.0, -1.0]}
    refused("at least 0 is wanted for 'b/p'", "task_arithmetic", two("bottleneck"), **how)


def test_a_name_that_is_no_id_is_refused():
    refused("form dataset/prompt, but 'both' came", "ties", two("lora"), id="both")


GRAMS = {f"{QUERY}/kernel": (2, D, D), f"{WO}/kernel": (2, F, F)}
SQUARES = {f"{QUERY}/kernel": (2, D, D), f"{WO}/kernel": (2, F, D)}


@pytest.mark.parametrize(("method", "shapes"), [("regmean", GRAMS), ("fisher", SQUARES)])
def test_statistics_are_wanted_of_every_expert_for_every_kernel_in_its_shape(method, shapes):
    assert plan(method, two("lora"), statistics=[shapes, shapes]).reads == shapes
    assert plan(method, two("lora")).reads == shapes  # what is yet to be taken
    said = f"'{method}' wants statistics .*every one of 2 experts, but 1 came"
    refused(said, method, two("lora"), statistics=[shapes])
    refused("but 1 came", method, two("lora"), statistics=[shapes])
    lacking = {f"{QUERY}/kernel": shapes[f"{QUERY}/kernel"]}
    refused(
        f"statistics of 'b/p' for {WO}/kernel as .* but nothing came",
        method,
        two("lora"),
        statistics=[shapes, lacking],
    )
    odd = {**shapes, f"{WO}/kernel": (2, 3, 3)}
    refused(r"but \(2, 3, 3\) came", method, two("lora"), statistics=[odd, shapes])


def test_statistics_that_nobody_reads_are_refused():
    refused("'ties' reads no statistics", "ties", two("lora"), statistics=[{}, {}])


@pytest.mark.parametrize("kind", KINDS)
def test_the_average_takes_every_kind(kind):
    assert plan("average", two(kind)).weights == (0.5, 0.5)
