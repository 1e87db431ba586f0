"""Workloads: rows and steps of a recipe by the catalogue's counts, without data and without weights."""

from dataclasses import replace

import pytest

from elm_jax.errors import UserError
from elm_jax.runs import workload
from elm_jax.runs.workload import Evaluation, Training
from elm_jax.tasks import datasets
from elm_jax.weights import elm, known

PROMPTS = "gin/recipes/all_prompt_experts.gin"
UNSEEN = ["EVAL_TASKS = ('unseen',)", "ORACLE = True"]


def training(recipe, *bindings, **options):
    found = workload.read(recipe, bindings, **options)
    assert isinstance(found, Training)
    return found


def evaluation(*bindings):
    found = workload.read("gin/recipes/evaluate_unseen.gin", bindings, experts=296)
    assert isinstance(found, Evaluation)
    return found


def test_all_prompt_experts_are_the_papers_with_their_rows_and_steps():
    found = {each.id: each for each in training(PROMPTS).experts}
    assert len(found) == 296
    cosmos = found["cosmos_qa/no_prompt_text"]
    assert (cosmos.rows, cosmos.steps, cosmos.batch_size) == (25_262, 15_790, 8)  # five epochs
    xsum = found["xsum/article_DOC_summary"]
    assert (xsum.rows, xsum.steps, xsum.batch_size, xsum.longest_prompt) == (10_000, 25_000, 2, 512)


def test_one_expert_a_dataset_takes_the_cap_of_each_prompt():
    [found] = training("gin/recipes/dataset_expert_adapter.gin").experts
    assert (found.id, found.rows) == ("cosmos_qa/all", 13 * 3_847)
    [full] = training("gin/recipes/dataset_expert.gin").experts
    assert full.rows == 13 * 7_693  # 100,000 of the whole dataset
    assert full.steps == 5 * 782


def test_one_expert_on_all_takes_as_many_steps_as_its_recipe_says():
    [found] = training("gin/recipes/multitask.gin").experts
    assert (found.steps, found.batch_size, found.longest_prompt) == (10_000, 128, 256)
    counts = [
        min(5_000, each.splits[each.split])
        for each in datasets.datasets().values()
        for _ in each.prompts
        if each.group == "train"
    ]
    assert found.rows == sum(counts)


def test_a_macro_wins_as_in_training():
    found = training(PROMPTS, "MIXTURE_OR_TASK_NAME = 'dream'", "MAX_TRAIN_SAMPLES = 100", "EPOCHS = 2")
    assert [(each.rows, each.steps) for each in found.experts] == [(100, 26)] * 5
    assert training(PROMPTS, "MESH = {'expert': 2}").mesh == {"expert": 2}


def test_where_the_catalogue_does_not_know_a_split_the_cap_is_taken():
    found = {each.id: each.rows for each in training("gin/recipes/continual.gin").experts}
    assert found["wiki_auto/simplification_1"] == 100_000


def test_lengths_are_assumed_and_said_to_be_unless_means_are_given():
    told = training(PROMPTS, "MIXTURE_OR_TASK_NAME = 'dream'")
    assert told.assumed == (
        "a base of size xl",
        "prompts of 60% of their length",
        "answers of 15% of their length",
    )
    assert (told.experts[0].prompt, told.experts[0].answer) == (0.6 * 256, 0.15 * 128)
    given = training(PROMPTS, "MIXTURE_OR_TASK_NAME = 'dream'", means=(200.0, 300.0), size="base")
    assert given.assumed == ()
    assert (given.experts[0].prompt, given.experts[0].answer) == (200, 128)  # no more than their length
    assert given.network.emb_dim == 768


def test_an_oracle_passes_every_row_of_the_unseen_tasks_with_every_expert():
    found = evaluation(*UNSEEN, "METHODS = ('base', 'roe', 'roe_per_instance')")
    assert (found.tasks, found.rows) == (113, 125_730)
    assert found.rows * found.experts == 37_216_080
    # What retrieval chooses is scored anyway.
    assert found.scorers == 1 + 296
    assert found.passes == 297 * 125_730


def test_without_an_oracle_every_method_scores_and_what_is_merged_does_beside_one():
    methods = "METHODS = ('roe', 'roe:experts=3+average', 'bm25', 'uniform')"
    assert evaluation("EVAL_TASKS = 'unseen'", methods).scorers == 1 + 4
    assert evaluation("EVAL_TASKS = 'unseen'", "ORACLE = True", methods).scorers == 1 + 2 + 296


def test_calibrated_scores_are_scored_twice():
    assert evaluation(*UNSEEN, "SCORE = 'calibrated'").scorers == 2 * evaluation(*UNSEEN).scorers


def test_the_size_of_every_known_model_is_told_by_its_name():
    sizes = {name: workload.size_of(name) for name in known.KNOWN}
    assert sizes["t5-xl-lm-adapt"] == sizes["flan-t5-xl"] == sizes["T0_3B"] == "xl"
    assert sizes["T0pp"] == "xxl"
    assert sizes["t5-11b" if "t5-11b" in sizes else "t5-11B"] == "t5-11b"
    assert sizes["mt0-small"] == "mt5-small"
    assert sizes["byt5-base"] == "byt5-base"


def test_a_base_in_a_directory_tells_its_own_shape(base, config, tmp_path):
    elm.save(tmp_path, elm.of(config, base))
    found = training("gin/recipes/multitask.gin", f"INITIAL_CHECKPOINT_PATH = '{tmp_path}'")
    assert found.network == replace(config, dtype="bfloat16")


def test_a_recipe_that_names_its_base_needs_no_size():
    found = training("gin/recipes/multitask.gin", "INITIAL_CHECKPOINT_PATH = 'google/mt5-base'")
    assert found.network.vocab_size == 250_112
    assert "a base" not in " ".join(found.assumed)


@pytest.mark.parametrize(
    ("recipe", "bindings", "options", "said"),
    [
        ("gin/recipes/composition.gin", [], {}, "of another verb"),
        (
            "gin/recipes/evaluate_unseen.gin",
            ["EVAL_TASKS = 'haiku'"],
            {"experts": 2},
            "does not know how many",
        ),
        ("gin/recipes/evaluate_unseen.gin", [], {}, "give --experts"),
        ("gin/recipes/none.gin", [], {}, "no file is there"),
        (PROMPTS, ["STEPZ = 3"], {}, "No macro named 'STEPZ'"),
        (PROMPTS, ["INITIAL_CHECKPOINT_PATH = 'me/mine'"], {}, "Give it as --size"),
        (PROMPTS, [], {"size": "xq"}, "Did you mean 'xl'"),
    ],
)
def test_what_cannot_be_counted_is_one_sentence(recipe, bindings, options, said):
    with pytest.raises(UserError, match=said):
        workload.read(recipe, bindings, **options)
