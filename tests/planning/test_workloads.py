"""Workloads: what recipes ask for, counted without weights."""

import json

import pytest

from elm_jax.errors import UserError
from elm_jax.planning import networks, workloads
from elm_jax.planning.workloads import PlanOptions

PROMPTS = "gin/recipes/prompt_expert.gin"
DREAM = ["MIXTURE_OR_TASK_NAME = 'dream'"]


def only(recipe, bindings=(), **asked):
    (load,) = workloads.read_workloads(recipe, list(bindings), PlanOptions(**asked))
    return load


def test_a_recipe_of_the_paper_has_an_expert_for_each_prompt_with_the_papers_steps():
    load = only("gin/recipes/all_prompt_experts.gin")
    assert len(load.measured) == 296
    assert load.network.emb_dim == 2048
    assert load.network.dtype == "bfloat16"
    assert "a base of size xl" in load.assumed
    longest = [int(each.prompt.max()) for each in load.measured]
    assert longest == sorted(longest, reverse=True)


def test_rows_are_those_of_the_catalogue_up_to_the_papers_cap():
    load = only(PROMPTS, DREAM)
    assert len(load.measured) == 5
    steps = {each.job.steps for each in load.measured}
    # DREAM's training split has 6,116 rows, in batches of 8: 5 epochs, or 10 for a prompt that extracts.
    assert steps <= {5 * 765, 10 * 765}


def test_lengths_have_the_assumed_mean_and_the_longest_row():
    load = only(PROMPTS, DREAM)
    each = load.measured[0]
    longest = int(each.prompt.max())
    assert float(each.prompt.mean()) == pytest.approx(workloads.PROMPT_SHARE * longest, rel=0.02)
    widest = int(each.target.max())
    assert float(each.target.mean()) == pytest.approx(workloads.ANSWER_SHARE * widest, rel=0.1)


@pytest.fixture
def own(tmp_path):
    """A task of one's own with eleven rows."""
    rows = [{"text": f"row {number}", "label": number % 2} for number in range(11)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "mine.yaml"
    file.write_text(
        "datasets:\n  mine:\n    jsonl: {train: mine.jsonl}\n    prompts:\n      plain:\n"
        '        answer_choices: "no ||| yes"\n'
        '        jinja: "{{text}} ||| {{answer_choices[label]}}"\n'
    )
    return file


def of_own(file):
    named = ["MIXTURE_OR_TASK_NAME = 'mine'", f"TASK_FILES = ('{file}',)", "PAPER = None", "EPOCHS = 2"]
    return [*named, "BATCH_SIZE = 4"]


def test_tasks_of_ones_own_are_counted_from_their_rows(own):
    (each,) = only(PROMPTS, of_own(own)).measured
    assert each.job.steps == 2 * 3  # epochs of eleven rows, four a step


def test_rows_that_are_elsewhere_are_given(own):
    (own.parent / "mine.jsonl").unlink()
    with pytest.raises(UserError, match=r"rows of 'mine/plain', got none.*--rows 10000"):
        only(PROMPTS, of_own(own))
    (each,) = only(PROMPTS, of_own(own), rows=100).measured
    assert each.job.steps == 2 * 25


def test_a_recipe_that_trains_nothing_is_refused():
    with pytest.raises(UserError, match="that trains or evaluates, got "):
        only("gin/models/t5_tiny_from_scratch.gin")
    with pytest.raises(UserError, match="Expected steps"):
        only(PROMPTS, [*DREAM, "TRAIN_STEPS = 0"])


def test_an_evaluation_has_a_scorer_for_the_base_and_each_method_or_for_each_expert():
    unseen = "gin/recipes/evaluate_unseen.gin"
    load = only(unseen)
    assert load.experts == workloads.DEFAULT_EXPERTS
    assert f"{workloads.DEFAULT_EXPERTS} experts in the library" in load.assumed
    assert load.scorers == 1 + 5
    assert load.modes == ("stack",)
    every = only(unseen, ["ORACLE = True"], experts=10)
    assert every.scorers > 10
    assert "gate" in only(unseen, ["METHODS = ('arrow:k=2',)"]).modes
    with pytest.raises(UserError, match="experts to evaluate, got 0"):
        only(unseen, experts=0)


def test_a_recipe_of_the_whole_path_trains_and_scores():
    trained, scored = workloads.read_workloads(
        "gin/recipes/dream_to_story_cloze.gin",
        ["DATA_DIR = 'data'", "TEMPLATES_DIR = 'templates'"],
        PlanOptions(rows=50),
    )
    assert len(trained.measured) == 18
    assert trained.network.emb_dim == 64  # the tiny base that it trains first
    assert scored.experts == 18
    assert scored.tasks == 5


@pytest.mark.parametrize(
    ("name", "size"),
    [("t5-xl-lm-adapt", "xl"), ("google/mt5-base", "mt5-base"), ("T0_3B", "xl"), ("t5-3b", "t5-3b")],
)
def test_the_size_of_a_published_base_is_in_its_name(name, size):
    assert networks.find_size(name) == size


@pytest.mark.parametrize("name", ["google/umt5-base", "hf:google/flan-ul2@main", "hf:me/mine"])
def test_a_base_whose_size_is_in_no_table_is_refused(name):
    with pytest.raises(UserError, match="--size"):
        networks.find_size(name)
