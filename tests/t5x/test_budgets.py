"""A training under T5X has the paper's budget of its prompt where the recipe says None, as in our engine."""

import json

import pytest

from elm_jax.errors import UserError
from elm_jax.t5x import budgets
from elm_jax.tasks.data_source import Source

ABSENT = dict.fromkeys(("TRAIN_STEPS", "BATCH_SIZE", "LEARNING_RATE", "TASK_FEATURE_LENGTHS"))
OWN = """
datasets:
  reviews:
    jsonl: {train: reviews.jsonl}
    prompts:
      is it good: {answer_choices: "no ||| yes", jinja: "{{text}} ||| {{answer_choices[label]}}"}
    training: {epochs: 3, rate: 0.0002, batch: 4, source_length: 64, target_length: 8, rows: 5}
"""


@pytest.fixture
def own(tmp_path):
    """A file of tasks with a budget of its own, over seven rows of which five are taken."""
    rows = [{"text": f"film {number}", "label": number % 2} for number in range(7)]
    (tmp_path / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.yaml").write_text(OWN)
    return tmp_path / "own.yaml"


@pytest.mark.parametrize("name", ["reviews/is it good", "reviews_is_it_good"])
def test_what_is_none_is_the_budget_of_the_prompt(own, name):
    found = budgets.complete_budget({**ABSENT, "MIXTURE_OR_TASK_NAME": name}, Source(), [own])
    # Three epochs of five rows, four a step and then the one that is left.
    lengths = {"inputs": 64, "targets": 8}
    assert found == {
        "TRAIN_STEPS": 6,
        "BATCH_SIZE": 4,
        "LEARNING_RATE": 2e-4,
        "TASK_FEATURE_LENGTHS": lengths,
    }


def test_what_is_given_stays_and_steps_follow_from_it(own):
    given = {"MIXTURE_OR_TASK_NAME": "reviews/is it good", "TRAIN_STEPS": None, "BATCH_SIZE": 2}
    assert budgets.complete_budget(given, Source(), [own]) == {"TRAIN_STEPS": 9}
    assert budgets.complete_budget({**given, "TRAIN_STEPS": 7}, Source(data_dir="/none"), [own]) == {}


def test_a_task_without_a_budget_wants_steps():
    name = {"MIXTURE_OR_TASK_NAME": "mini_taxonomy_kind/what kind of thing"}
    with pytest.raises(UserError, match="TRAIN_STEPS for 'mini_taxonomy_kind/what kind of thing'"):
        budgets.complete_budget({**ABSENT, **name}, Source())
    found = budgets.complete_budget({**ABSENT, **name, "TRAIN_STEPS": 3}, Source())
    assert (found["BATCH_SIZE"], found["LEARNING_RATE"]) == (8, 1e-4)


def test_a_prompt_of_the_catalogue_has_its_own():
    # catalogue/train.yaml: `training: {batch: 2, source_length: 512, rows: 10000}`
    name = {"MIXTURE_OR_TASK_NAME": "wiki_qa/Is This True?", "TRAIN_STEPS": 3}
    found = budgets.complete_budget({**ABSENT, **name}, Source())
    lengths = {"inputs": 512, "targets": 128}
    assert found == {"BATCH_SIZE": 2, "LEARNING_RATE": 1e-4, "TASK_FEATURE_LENGTHS": lengths}
