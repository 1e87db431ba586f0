"""Configurations: what is left open is the paper's, or else a default, and what is given counts."""

import json
from dataclasses import asdict, replace

import pytest

from elm_jax.data import task_selection
from elm_jax.errors import UserError
from elm_jax.records import ExpertSpec
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.training import config as configs
from elm_jax.training import expert_configs
from elm_jax.training.config import TrainConfig
from tests.training_configs import train_config


def resolve(*names, lengths=None, **values):
    return expert_configs.resolve_experts(task_selection.select_tasks(names), train_config(**values), lengths)


def recipe(expert):
    """What is noted of an expert's schedule and batch."""
    noted = configs.recipe_of(expert.config)
    return noted["steps"], noted["batch_size"], noted["rate"]


def test_without_a_table_an_expert_has_the_defaults():
    (found,) = resolve("mini_size_animal/than a dog")
    assert (*recipe(found), found.max_rows) == (1000, 8, 1e-4, None)
    assert found.lengths == Lengths()
    assert found.config_for(5).schedule.steps == 1000


def test_the_papers_prompt_experts_have_their_datasets_budgets_and_their_own_exceptions():
    found = {expert.id: expert for expert in resolve("quartz", paper="prompt")}
    long = found["quartz/use_info_from_paragraph_question"]
    small = found["quartz/read_passage_below_choose"]
    other = found["quartz/given_the_fact_answer_the_q"]
    assert (long.config.schedule.epochs, *recipe(long)) == (10, None, 8, 1e-4)
    assert (small.config.schedule.epochs, *recipe(small)) == (5, None, 4, 1e-4)
    assert (other.config.schedule.epochs, *recipe(other), other.max_rows) == (5, None, 8, 1e-4, 50_000)
    assert other.lengths == Lengths(256, 128)
    # 21 rows are two steps of 8 and one of 5, five times.
    assert other.config_for(21).schedule.steps == 15


def test_what_is_given_wins_over_the_table():
    given = {"paper": "prompt", "steps": 7, "batch_size": 3, "rate": 0.5}
    (found,) = resolve("cosmos_qa/no_prompt_text", lengths=Lengths(9, 8), **given)
    assert (*recipe(found), found.lengths) == (7, 3, 0.5, Lengths(9, 8))


def test_a_dataset_has_one_expert_on_all_its_prompts_and_all_tasks_have_one_together():
    named = ("mini_size_animal", "mini_sentiment_film")
    by_dataset = resolve(*named, train_as="dataset")
    assert [expert.id for expert in by_dataset] == ["mini_size_animal/all", "mini_sentiment_film/all"]
    assert [len(expert.specs) for expert in by_dataset] == [2, 2]
    (together,) = resolve(*named, train_as="multitask", name="x")
    assert (together.id, len(together.specs)) == ("multitask/x", 4)


def test_the_full_dataset_expert_takes_its_hundred_thousand_rows_from_all_prompts_evenly():
    (found,) = resolve("cosmos_qa", paper="dataset", train_as="dataset")
    assert (found.max_rows, found.config.batch.size) == (7693, 128)  # of 13 prompts
    assert found.lengths == Lengths(512, 128)


def test_a_limit_of_the_source_wins_over_the_papers_rows():
    (found,) = resolve("cosmos_qa/no_prompt_text", paper="prompt")
    assert expert_configs.training_source(found, Source()).limit == 50_000
    assert expert_configs.training_source(found, Source(limit=5)).limit == 5


def test_validation_takes_rows_of_the_evaluation_split_alone():
    (spec,) = task_selection.select_tasks(["mini_size_animal/than a dog"])
    found = expert_configs.validation_source(spec, Source(), 6)
    assert (found.splits, found.limit) == ({"mini_size_animal": "validation"}, 6)
    with pytest.raises(UserError, match="'mini_size_animal/than a dog'"):
        expert_configs.validation_source(replace(spec, evaluation_split="train"), Source(), 6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_as": "datasets"}, "'dataset'"),
        ({"paper": "prompts"}, "'prompt'"),
        ({"steps": 5, "epochs": 1}, "TRAIN_STEPS=5 and EPOCHS=1"),
        ({"train_as": "multitask"}, "EXPERT_NAME"),
        ({"keep": "first"}, "'first'"),
        ({"keep": "best"}, "EVAL_PERIOD"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_read(values, message):
    with pytest.raises(UserError, match=message):
        resolve("mini_size_animal", **values)


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        ("dream", {"paper": "target"}, "target"),
        (
            "vitaminc_fact_verification",
            {"paper": "prompt", "steps": 7, "batch_size": 3, "rate": 0.5},
            "set TASK_FEATURE_LENGTHS, or PAPER",
        ),
    ],
)
def test_a_task_of_the_paper_without_a_budget_in_a_table_is_refused(task, values, message):
    with pytest.raises(UserError, match=message):
        resolve(task, **values)


def test_options_that_are_left_open_are_those_that_all_experts_of_the_kind_have():
    def other(kind, **recipe):
        return ExpertSpec("a/b", kind, "base", ("x",), ("a",), 1, recipe)

    def inherited(others, **values):
        return expert_configs.inherit_kind_options(train_config(**values), others).expert.options

    wide, narrow = ({"width": width} for width in (16, 2))
    alike = [other("bottleneck", options=wide), other("bottleneck"), other("lora", options={"rank": 4})]
    assert inherited(alike) == wide
    assert inherited(alike, options=narrow) == narrow
    assert inherited(alike, kind="ia3") == {}
    assert inherited([*alike, other("bottleneck", options=narrow)]) == {}
    assert inherited([*alike, other("bottleneck", options={})]) == {}


def test_the_recipe_of_an_expert_has_the_keys_that_libraries_have():
    """Under other keys, experts of before would count as trained otherwise."""
    (found,) = resolve("mini_size_animal/than a dog", options={"projections": ("query",)}, seed=3)
    assert configs.recipe_of(found.config) == {
        "steps": 1000,
        "rate": 1e-4,
        "seed": 3,
        "batch_size": 8,
        "schedule": "linear",
        "warmup": 0,
        "optimizer": "adamw",
        "clip": None,
        "z_loss": 0.0,
        "label_smoothing": 0.0,
        "unlikely_loss": 0.0,
        "mc_loss": 0.0,
        "length_norm": 1.0,
        "kind": "bottleneck",
        "options": {"projections": ["query"]},
        "dropout": 0.1,
        "keep": "last",
    }


def test_what_a_resumed_run_must_have_goes_by_the_keys_that_checkpoints_have():
    given = {"steps": 2, "rate": 0.5, "batch_size": 4, "schedule": "linear", "warmup": 0, "seed": 0}
    config = train_config(**given, places=3, batch_tokens=9, mesh={"data": 2}, dropout=0.3)
    assert configs.own_identity(config) == given
    assert configs.shared_identity(config) == {
        "kind": "bottleneck",
        "options": {},
        "optimizer": "adamw",
        "clip": None,
        "z_loss": 0.0,
        "label_smoothing": 0.0,
        "save_every": None,
        "validate_every": 0,
        "keep": "last",
    }


def test_a_resumed_run_must_have_t_fews_loss_where_it_is_set():
    assert configs.shared_identity(train_config(mc_loss=1.0))["mc_loss"] == 1.0


def test_every_field_has_a_key_of_its_own():
    assert len(configs.field_paths()) == len(configs.settings_of(TrainConfig())) == 33
    assert len(set(configs.field_paths().values())) == 33


def test_a_configuration_written_as_json_and_read_is_the_same():
    config = train_config(steps=3, kind="lora", options={"rank": 2}, trackers=("wandb",), mesh={"data": 2})
    assert configs.from_json(json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize("rate", [-1.0, float("nan"), float("inf")])
def test_a_learning_rate_that_is_no_rate_is_refused(rate):
    with pytest.raises(UserError, match="learning_rate"):
        configs.ScheduleConfig(learning_rate=rate)
