"""Candidates: methods that choose among some of a library's experts, or by other keys, in one evaluation."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.evaluation import scorer_selection
from elm_jax.evaluation.candidates import choose_candidates
from elm_jax.evaluation.config import EvaluationConfig
from elm_jax.evaluation.evaluate import evaluate
from elm_jax.evaluation.methods import parse_method
from elm_jax.experts.library import Library
from elm_jax.routing import index as keys
from elm_jax.routing.route import load_selections
from tests.run_fixtures import LORA, TRAINED, add_expert

METHODS = (
    "roe",
    "three=roe:keys=3,text_format=label_instance",
    "two=uniform:library_size=2",
    'sizes=roe:without="mini_sentiment_film"',
    'gated=arrow:without="mini_size_animal",k=1',
    "hilora=hilora:k=2",
    "parts=roe:experts=2,k=4+components:share=0.5",
)


@pytest.fixture(scope="module")
def run(make_run):
    return make_run(LORA)


@pytest.fixture(scope="module")
def library(run):
    return Library.open(run.workspace.library)


@pytest.fixture(scope="module")
def outcome(run, unseen):
    return evaluate(run, unseen, EvaluationConfig(methods=METHODS, queries=6))


@pytest.fixture(scope="module")
def chosen(run, outcome):
    assert {row.method for row in outcome.report.rows} >= {"roe", "three", "two", "gated", "hilora", "parts"}
    return scorer_selection.load_selection(run.workspace)


def test_a_smaller_library_is_part_of_a_larger_one(library):
    drawn = [choose_candidates(library, TRAINED, {"library_size": size}, 0) for size in (1, 2, 3, 4)]
    assert [len(each) for each in drawn] == [1, 2, 3, 4]
    for small, large in itertools.pairwise(drawn):
        assert set(small) < set(large)
        assert large == [expert for expert in TRAINED if expert in large]


@pytest.mark.parametrize(
    "options",
    [{"library_size": 5}, {"library_size": -1}, {"without": "mini_size_animal, mini_sentiment_film"}],
)
def test_more_experts_than_there_are_and_none_are_refused(library, options):
    with pytest.raises(UserError, match="library_size from 1 to"):
        choose_candidates(library, TRAINED, options, 0)


def test_a_method_merges_the_experts_of_its_smaller_library_alone(run, library, chosen, unseen):
    two = choose_candidates(library, sorted(TRAINED), {"library_size": 2}, run.source.seed)
    composite = chosen.composites[chosen.scorers["two"][unseen[0].id]]
    assert sorted(composite.members) == sorted(two)


def test_a_method_chooses_no_expert_of_a_dataset_that_it_leaves_out(chosen, unseen):
    for spec in unseen:
        assert chosen.scorers["sizes"][spec.id].startswith("mini_size_animal/")
        gate = chosen.gates[chosen.scorers["gated"][spec.id]]
        assert {expert.partition("/")[0] for expert in gate.experts} == {"mini_sentiment_film"}


def test_keys_of_a_method_are_those_that_elm_index_makes(make_run, run, outcome, unseen):
    del outcome
    name = "roe_top1,keys=3,text_format=label_instance"
    found = {each.task: each for each in load_selections(run.workspace, name)}
    other = make_run(LORA, keyed=False)
    keys.index(other, size=3, text_format="label_instance")
    evaluate(other, unseen, EvaluationConfig(methods=["roe"], queries=6))
    for expected in load_selections(other.workspace, "roe_top1"):
        own = found[expected.task]
        assert own.votes == expected.votes
        assert [expert for expert, _ in own.nearest] == [expert for expert, _ in expected.nearest]
        np.testing.assert_allclose(
            [near for _, near in own.nearest], [near for _, near in expected.nearest], rtol=1e-5
        )


def test_the_experts_own_keys_stay_as_they_are(library, outcome):
    del outcome
    assert {library.load_keys(expert).text_format for expert in TRAINED} == {"instance_new"}
    assert {len(library.load_keys(expert).texts) for expert in TRAINED} == {4}


def test_tokens_use_components_of_the_experts_that_were_chosen_for_the_task(chosen, outcome, unseen):
    for spec in unseen:
        routed = next(
            each for each in chosen.selections if each.task == spec.id and each.router.startswith("hilora")
        )
        gate = chosen.gates[chosen.scorers["hilora"][spec.id]]
        assert gate.experts == tuple(routed.weights)
        assert gate.options == {"weights": list(routed.weights.values()), "share": 0.4}
        assert chosen.gates[chosen.scorers["parts"][spec.id]].options["share"] == 0.5
    notes = {row.method: row.note for row in outcome.report.methods}
    assert "components" in notes["hilora"]


def test_all_components_of_one_expert_score_as_the_expert(run, unseen):
    expert = TRAINED[0]
    config = EvaluationConfig(methods=["whole=roe:library_size=1+components:share=1.0", "roe:library_size=1"])
    report = evaluate(run, unseen, replace(config, experts=[expert])).report
    by_method = {
        method: [row.accuracy for row in report.rows if row.method == method]
        for method in ("whole", "roe:library_size=1")
    }
    assert by_method["whole"] == by_method["roe:library_size=1"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fixed:expert=a/b,library_size=2", "'library_size'"),
        ("arrow:keys=3", "'keys'"),
        ("roe:keys=many", "'keys' of 'roe' of type int"),
        ("roe+components:share=2.0", "'share'"),
    ],
)
def test_a_router_takes_the_options_that_mean_something_to_it(text, said):
    with pytest.raises(UserError, match=said):
        parse_method(text)


def test_an_expert_has_at_least_one_key(run, unseen):
    with pytest.raises(UserError, match="at least 1"):
        evaluate(run, unseen, EvaluationConfig(methods=["roe:keys=0"]))


def test_components_want_lora_experts(make_run, unseen):
    run = make_run({**dict.fromkeys(TRAINED, LORA), TRAINED[1]: ("bottleneck", {"width": 4})})
    add_expert(run, TRAINED[1], "bottleneck", {"width": 4})
    with pytest.raises(UserError, match="bottleneck"):
        evaluate(run, unseen, EvaluationConfig(methods=["hilora"]))
