"""Courses: what a budget leaves open is the paper's, or else a default, and what it says holds."""

from dataclasses import replace

import pytest

from elm_jax.data import task_selection
from elm_jax.errors import UserError
from elm_jax.records import ExpertSpec
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.training import config
from elm_jax.training.config import Budget


def of(*names, budget=Budget(), **options):  # noqa: B008  a frozen value
    return config.courses(task_selection.choose(names), budget, **options)


def test_without_a_table_a_course_has_the_defaults():
    (found,) = of("mini_size_animal/than a dog")
    assert (found.steps, found.batch_size, found.rate, found.cap) == (1000, 8, 1e-4, None)
    assert found.lengths == Lengths()
    assert found.steps_on(5) == 1000


def test_the_papers_prompt_experts_have_their_datasets_budgets_and_their_own_exceptions():
    found = {course.id: course for course in of("quartz", budget=Budget(paper="prompt"))}
    long = found["quartz/use_info_from_paragraph_question"]
    small = found["quartz/read_passage_below_choose"]
    other = found["quartz/given_the_fact_answer_the_q"]
    assert (long.epochs, long.batch_size) == (10, 8)
    assert (small.epochs, small.batch_size) == (5, 4)
    assert (other.epochs, other.batch_size, other.rate, other.cap) == (5, 8, 1e-4, 50_000)
    assert other.lengths == Lengths(256, 128)
    # 21 rows are two steps of 8 and one of 5, five times.
    assert other.steps_on(21) == 15


def test_what_the_budget_says_wins_over_the_table():
    budget = Budget(paper="prompt", steps=7, batch_size=3, rate=0.5)
    (found,) = of("cosmos_qa/no_prompt_text", budget=budget, lengths=Lengths(9, 8))
    assert (found.steps, found.batch_size, found.rate, found.lengths) == (7, 3, 0.5, Lengths(9, 8))


def test_a_dataset_has_one_course_on_all_its_prompts_and_all_tasks_have_one_together():
    named = ("mini_size_animal", "mini_sentiment_film")
    by_dataset = of(*named, as_="dataset")
    assert [course.id for course in by_dataset] == ["mini_size_animal/all", "mini_sentiment_film/all"]
    assert [len(course.specs) for course in by_dataset] == [2, 2]
    (together,) = of(*named, as_="multitask", name="x")
    assert (together.id, len(together.specs)) == ("multitask/x", 4)


def test_the_full_dataset_expert_takes_its_hundred_thousand_rows_from_all_prompts_evenly():
    (found,) = of("cosmos_qa", budget=Budget(paper="dataset"), as_="dataset")
    assert (found.cap, found.batch_size, found.lengths) == (7693, 128, Lengths(512, 128))  # of 13 prompts


def test_a_limit_of_the_source_wins_over_the_cap():
    (found,) = of("cosmos_qa/no_prompt_text", budget=Budget(paper="prompt"))
    assert config.source_of(found, Source()).limit == 50_000
    assert config.source_of(found, Source(limit=5)).limit == 5


def test_rows_are_held_out_of_the_evaluation_split_alone():
    (spec,) = task_selection.choose(["mini_size_animal/than a dog"])
    found = config.held_out(spec, Source(), 6)
    assert (found.splits, found.limit) == ({"mini_size_animal": "validation"}, 6)
    with pytest.raises(UserError, match=r"A split to validate .* the catalogue has none beside the one"):
        config.held_out(replace(spec, evaluation_split="train"), Source(), 6)


@pytest.mark.parametrize(
    ("budget", "options", "told"),
    [
        (Budget(), {"as_": "datasets"}, "Did you mean 'dataset'"),
        (Budget(paper="prompts"), {}, "Did you mean 'prompt'"),
        (Budget(steps=5, epochs=1), {}, "TRAIN_STEPS=5 and EPOCHS=1 came"),
        (Budget(), {"as_": "multitask"}, "give EXPERT_NAME"),
        (Budget(keep="first"), {}, "KEEP should be 'last' or 'best'"),
        (Budget(keep="best"), {}, "give EVAL_PERIOD"),
        (Budget(paper="target"), {}, "target"),
        (
            Budget(paper="prompt", steps=7, batch_size=3, rate=0.5),
            {},
            r"'prompt' is asked for TASK_FEATURE_LENGTHS: give that yourself, or set PAPER=None\.",
        ),
        (
            Budget(paper="dataset", epochs=1),
            {"lengths": Lengths()},
            "is asked for BATCH_SIZE, LEARNING_RATE: give that",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_read(budget, options, told):
    with pytest.raises(UserError, match=told):
        of("mini_size_animal", budget=budget, **options)


def test_options_that_a_budget_leaves_open_are_those_that_all_experts_of_the_kind_have():
    def other(kind, **recipe):
        return ExpertSpec("a/b", kind, "base", ("x",), ("a",), 1, recipe)

    wide, narrow = ({"width": width} for width in (16, 2))
    alike = [other("bottleneck", options=wide), other("bottleneck"), other("lora", options={"rank": 4})]
    assert config.like_others(Budget(), alike).options == wide
    assert config.like_others(Budget(options=narrow), alike).options == narrow
    assert config.like_others(Budget(kind="ia3"), alike).options == {}
    assert config.like_others(Budget(), [*alike, other("bottleneck", options=narrow)]).options == {}
    assert config.like_others(Budget(), [*alike, other("bottleneck", options={})]).options == {}
