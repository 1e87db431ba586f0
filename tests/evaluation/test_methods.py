"""Methods as strings: what they stand for, what is wrong with them, and what a library does not allow."""

import pytest

from elm_jax.errors import UserError
from elm_jax.evaluation import methods
from elm_jax.evaluation.methods import EvaluationMethod, parse_method
from elm_jax.records import ExpertSpec


def described(name, kind, shape):
    path = {"lora": "encoder/layers/mlp/wo/lora_a", "full": "encoder/layers/mlp/wo/kernel"}.get(
        kind, "encoder/layers/mlp_adapter/down/kernel"
    )
    shapes = {path: shape} | ({path.replace("_a", "_b"): shape[::-1]} if kind == "lora" else {})
    return ExpertSpec(name, kind, "base", tuple(shapes), ("d",), 1), shapes


NARROW = [described(name, "bottleneck", (2, 8, 4)) for name in ("a/1", "a/2")]
WIDE = [described("a/3", "bottleneck", (2, 8, 6))]
LORA = [described(name, "lora", (8, 2)) for name in ("b/1", "b/2")]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("roe", EvaluationMethod("roe", "roe")),
        ("roe:experts=3", EvaluationMethod("roe:experts=3", "roe", {"experts": 3}, "average")),
        (
            "mine=bm25:experts=2,weighting=votes+ties:density=0.5",
            EvaluationMethod("mine", "bm25", {"experts": 2, "weighting": "votes"}, "ties", {"density": 0.5}),
        ),
        ("uniform", EvaluationMethod("uniform", "uniform", {}, "average")),
        ("mbc:groups=4", EvaluationMethod("mbc:groups=4", "mbc", {"groups": 4}, "average")),
        ('f=fixed:expert="a/b, c+d"', EvaluationMethod("f", "fixed", {"expert": "a/b, c+d"})),
        ("fixed:expert=a/b c", EvaluationMethod("fixed:expert=a/b c", "fixed", {"expert": "a/b c"})),
        (
            'f=roe:faithful=["ties","renamed"]',
            EvaluationMethod("f", "roe", {"faithful": ["ties", "renamed"]}),
        ),
        ("arrow:temperature=2", EvaluationMethod("arrow:temperature=2", "arrow", {"temperature": 2})),
        ("base", EvaluationMethod("base", "base")),
    ],
)  # fmt: skip
def test_a_string_stands_for_a_router_and_a_merge_with_their_options(text, found):
    assert parse_method(text) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("reo", "No router named 'reo' .* Did you mean 'roe'"),
        ("roe:expert=3", "No option named 'expert' in the options of 'roe' .* Did you mean 'experts'"),
        ("uniform+tise", "No merging method named 'tise' .* Did you mean 'ties'"),
        ("uniform+ties:densty=1", "No option named 'densty' in the options of 'ties' .* Did you mean"),
        ("uniform+ties:density=7", r"'density', got 7\.0"),
        ("roe:experts=many", " 'experts' of 'roe' of type int, got 'many'"),
        ("arrow+average", "no merge after 'arrow'"),
        ("base+ties", "no merge after 'base'"),
        ("fixed", " 'expert' of router 'fixed'.* fixed:expert=VALUE"),
        ("roe:k", " after 'roe', each once, got 'k'"),
        ("roe:k=1,k=2", "each once, got 'k=2'"),
        ("uniform+average+ties", "got 2 merges"),
        ("lorahub:loss=1", "No option named 'loss'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_string_is_one_sentence(text, said):
    with pytest.raises(UserError, match=said):
        parse_method(text)


def test_two_methods_of_one_name_are_refused():
    with pytest.raises(UserError, match="two that are called 'roe'"):
        methods.parse_methods(["roe", "base", "roe"])
    assert [method.name for method in methods.parse_methods(["roe", "other=roe"])] == ["roe", "other"]


def test_the_default_set_has_the_names_that_reports_know():
    every = methods.default_methods(2, hindsight=True)
    assert [method.name for method in every] == [
        "base", "multitask", "uniform_merge", "roe_top1", "roe_top2_merge", "best_single", "oracle",
    ]  # fmt: skip
    assert [method.name for method in methods.default_methods(mixed=True)] == [
        "base",
        "multitask",
        "roe_top1",
    ]


def test_methods_are_kept_apart_by_the_labels_they_saw():
    labels = {
        text: parse_method(text).labels
        for text in ("roe", "arrow", "lorahub", "oracle", "best_single", "base")
    }
    assert labels == {
        "roe": "none", "arrow": "none", "lorahub": "few", "oracle": "hindsight", "best_single": "hindsight",
        "base": "none",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "library", "said"),
    [
        ("arrow", NARROW, "router 'arrow', got 'a/1' of kind 'bottleneck'"),
        ("average_activation", [*LORA, *NARROW], "got 'a/1' of kind 'bottleneck'"),
        ("mbc", NARROW, "router 'mbc'"),
        ("uniform", [*NARROW, *WIDE], " one kind and shape .*got 'a/1' and 'a/3'"),
        ("lorahub", [*NARROW, *LORA], " one kind and shape"),
        ("roe:experts=2+ties", NARROW, r"'bottleneck'.*'ties'"),
    ],
)
def test_what_a_library_does_not_allow_is_refused_by_its_specs(text, library, said):
    with pytest.raises(UserError, match=said):
        methods.require_compatible([parse_method(text)], library)


def test_what_a_library_allows_passes():
    every = methods.parse_methods(
        ["arrow", "spectr", "mbc", "uniform+ties", "lorahub", "roe:experts=2+average"]
    )
    methods.require_compatible(every, LORA)
    # Of several shapes some can be merged so; which ones a router chooses is not known yet.
    methods.require_compatible(methods.parse_methods(["roe:experts=2+ties", "roe", "base"]), [*NARROW, *LORA])
