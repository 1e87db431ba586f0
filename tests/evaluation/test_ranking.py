"""Scores of odd rows: each has the outcome that `evaluation.ranking` writes down."""

import json
from dataclasses import replace

import numpy as np
import pytest

from elm_jax.data import task_selection
from elm_jax.errors import UserError
from elm_jax.evaluation import evaluate, ranking
from elm_jax.evaluation.config import EvaluationConfig
from elm_jax.evaluation.results_cache import Cell
from elm_jax.evaluation.tasks import load_tasks
from elm_jax.experts.lookup import BASE_SCORER
from elm_jax.tasks import data_source, datasets
from tests.run_fixtures import BOTTLENECK, TRAINED, add_expert

LIMIT = 5  # tokens of an answer, in the shared run


@pytest.fixture(scope="module")
def run(make_run):
    return make_run()


@pytest.fixture
def task(tmp_path, monkeypatch):
    """Makes a task of one's own out of rows of (text, options, target)."""
    monkeypatch.setattr(datasets, "_user_datasets", {})

    def make(*found):
        lines = [dict(zip(("text", "options", "target"), row, strict=True)) for row in found]
        (tmp_path / "odd.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (tmp_path / "odd.yaml").write_text(
            """
datasets:
  odd:
    jsonl: {validation: odd.jsonl}
    split: validation
    prompts:
      it:
        answer_choices: "{{options | join('|||')}}"
        jinja: "{{text}} ||| {{target}}"
"""
        )
        return task_selection.select_tasks([str(tmp_path / "odd.yaml")], evaluation=True)

    return make


def scored(run, specs, source=None):
    run = run if source is None else replace(run, source=source)
    return score(run, specs, Cell(specs[0].id, BASE_SCORER))


def score(run, specs, cell):
    return ranking.score_cells(run, [cell], load_tasks(run, specs))[cell]


def test_a_single_choice_is_scored_and_right(run, task):
    found = scored(run, task(("a small dog", ["dog"], "dog"), ("a dog", ["cat", "dog"], "dog")))
    assert len(found.scores[0]) == 1
    assert found.predictions[0] == found.labels[0] == 0


def test_equal_choices_score_the_same_and_the_first_is_the_right_one(run, task):
    found = scored(run, task(("a small dog", ["dog", "cat", "dog"], "dog"), ("a dog", ["dog"], "dog")))
    assert found.scores[0][0] == found.scores[0][2]
    assert found.labels[0] == 0
    assert found.predictions[0] in (0, 1)


def test_an_empty_prompt_is_scored_after_the_end_of_sequence_alone(run, task):
    specs = task(("", ["cat", "dog"], "dog"), ("a dog", ["cat", "dog"], "dog"))
    # By default rows that render to nothing are left out; the original kept them.
    assert len(scored(run, specs).scores) == 1
    found = scored(run, specs, data_source.Source(faithful=("empty_renderings",)))
    assert len(found.scores) == 2
    cell = Cell(specs[0].id, BASE_SCORER, (1,), premise="")
    bare = score(run, specs, cell._replace(rows=(0,)))
    np.testing.assert_allclose(found.scores[0], bare.scores[0], rtol=1e-5)


def test_scores_after_prompts_without_their_end_are_others_and_take_no_others_place(run, task):
    specs = task(("", ["cat", "dog"], "dog"), ("a dog", ["cat", "dog"], "dog"))
    source = data_source.Source(faithful=("empty_renderings",))
    ended = scored(run, specs, source).scores
    open_ = scored(replace(run, tokenizer=replace(run.tokenizer, input_eos=False)), specs, source).scores
    assert open_[0] == ended[0]  # the empty prompt is its end either way
    assert np.abs(np.subtract(open_[1], ended[1])).min() > 1e-3
    assert scored(run, specs, source).scores == ended


def test_a_choice_longer_than_the_limit_is_cut_and_still_ends(run, task):
    long = "cat dog small big " * 9
    specs = task(("a dog", [long, f"{long} cat", "dog"], "dog"), ("a cat", ["dog"], "dog"))
    found = scored(run, specs)
    assert found.scores[0][0] == found.scores[0][1]  # nothing is left of what told them apart
    row = load_tasks(run, specs)[specs[0].id].prompts[0]
    assert [len(answer) for answer in row.answers] == [LIMIT, LIMIT, 2]
    assert {int(answer[-1]) for answer in row.answers} == {run.tokenizer.eos}


@pytest.mark.parametrize("options", [["cat", "dog"], []])
def test_a_row_whose_target_is_none_of_the_choices_is_left_out_or_refused_by_its_name(run, task, options):
    specs = task(("a dog", ["cat", "dog"], "dog"), ("a cat", options, "mouse"))
    assert len(scored(run, specs).scores) == 1
    with pytest.raises(UserError, match=r"1 left out.*'odd/validation/1'"):
        scored(run, specs, replace(run.source, on_bad_row="refuse"))


def test_an_expert_whose_weights_are_no_numbers_is_named_with_the_row(make_run, unseen):
    run = make_run(keyed=False)
    add_expert(run, "mini_size_animal/broken", *BOTTLENECK, by=np.nan)
    with pytest.raises(
        UserError, match=r"'mini_size_animal/broken', got NaN or infinity for row 'validation-"
    ):
        evaluate.evaluate(run, unseen, EvaluationConfig(methods=["fixed:expert=mini_size_animal/broken"]))
    # What was scored before is kept, and what is sound can still be had.
    found = evaluate.evaluate(run, unseen, EvaluationConfig(methods=[f"fixed:expert={TRAINED[0]}"]))
    assert found is not None
    assert len(found.report.rows) == 4


def test_what_a_row_scores_does_not_depend_on_the_rows_beside_it(run, unseen):
    whole = score(run, unseen, Cell(unseen[0].id, TRAINED[0]))
    some = Cell(unseen[0].id, TRAINED[0], (2, 7))
    part = score(run, unseen, some)
    assert part.row_ids == (whole.row_ids[2], whole.row_ids[7])
    np.testing.assert_allclose(part.scores, [whole.scores[2], whole.scores[7]], rtol=1e-5, atol=1e-5)
