"""Budgets are the paper's: of 296 prompts with their exceptions, of datasets, of targets."""

from collections import Counter
from dataclasses import replace

import pytest

from elm_jax.errors import UserError
from elm_jax.tasks import budgets, datasets, specs
from elm_jax.tasks.budgets import PaperBudget

TRAINED = specs.task_specs("train")
COMMON = PaperBudget(5, 1e-4, 8, 256, 128, 50_000)
# Of the paper's prompts these alone were trained otherwise than the rest of their dataset.
EXCEPTIONS = {
    "app_reviews/convert_to_star_rating": {"learning_rate": 3e-4},
    "common_gen/Example prompt": {"batch_size": 8, "max_rows": 10_000},
    "common_gen/Given concepts type 1": {"batch_size": 8, "max_rows": 10_000},
    "quail/context_description_question_answer_id": {"max_rows": 10_000},
    "quartz/use_info_from_paragraph_question": {"epochs": 10},
    "quartz/read_passage_below_choose": {"batch_size": 4},
    "samsum/Sum up the following dialogue": {"learning_rate": 3e-4},
}


def of(task):
    return budgets.get_prompt_expert_budget(specs.find_task(task))


def test_every_training_prompt_has_a_budget():
    found = [budgets.get_prompt_expert_budget(spec) for spec in TRAINED]
    assert len(found) == 296
    # TREC's 18 prompts and one of QuaRTz are trained for 10 epochs.
    assert Counter(each.epochs for each in found) == {5: 277, 10: 19}
    assert Counter(each.learning_rate for each in found) == {1e-4: 294, 3e-4: 2}
    # cnn_dailymail, common_gen, duorc, hotpot_qa, multi_news, samsum, wiki_bio, wiki_qa, xsum
    assert Counter(each.max_prompt for each in found) == {512: 9 + 9 + 9 + 6 + 6 + 7 + 1 + 11 + 10, 256: 228}
    assert {each.max_answer for each in found} == {128}


@pytest.mark.parametrize(("task", "differs"), EXCEPTIONS.items())
def test_an_exception_differs_from_its_dataset_in_what_the_paper_says_alone(task, differs):
    dataset = datasets.all_datasets()[task.partition("/")[0]]
    other = next(spec for spec in TRAINED if spec.dataset == dataset.name and spec.id not in EXCEPTIONS)
    assert of(task) == replace(budgets.get_prompt_expert_budget(other), **differs)


@pytest.mark.parametrize("dataset", sorted({spec.dataset for spec in TRAINED}))
def test_all_other_prompts_of_a_dataset_share_one_budget(dataset):
    others = [spec for spec in TRAINED if spec.dataset == dataset and spec.id not in EXCEPTIONS]
    assert len({budgets.get_prompt_expert_budget(spec) for spec in others}) == 1


@pytest.mark.parametrize(
    ("task", "budget"),
    [
        ("cosmos_qa/no_prompt_text", COMMON),
        ("trec/trec1", PaperBudget(10, 1e-4, 16, 256, 128, 10_000)),  # its cap is the original code's default
        ("paws/Rewrite", PaperBudget(5, 1e-4, 16, 256, 128, 49_401)),
        ("multi_news/distill", PaperBudget(5, 1e-4, 1, 512, 128, 10_000)),
        ("wiki_bio/who", PaperBudget(5, 1e-4, 8, 512, 128, 10_000)),
        ("mrpc/want to know", PaperBudget(5, 1e-4, 16, 256, 128, 50_000)),
        ("glue/qqp@quora", COMMON),
        ("quoref/Read And Extract ", PaperBudget(5, 1e-4, 4, 256, 128, 50_000)),
        ("imdb/Sentiment with choices ", COMMON),
        ("esnli/explain_why", PaperBudget(1, 1e-4, 8, 512, 256, 100_000)),
    ],
)
def test_a_prompts_budget_is_the_papers(task, budget):
    assert of(task) == budget


@pytest.mark.parametrize(
    ("name", "budget"),
    [
        ("cosmos_qa", PaperBudget(5, 1e-4, 8, 256, 128, 3_847)),
        ("trec", PaperBudget(5, 3e-4, 16, 256, 128, 2_778)),
        ("app_reviews", PaperBudget(5, 1e-4, 6, 256, 128, 12_500)),
        ("glue_mrpc", PaperBudget(10, 3e-4, 16, 256, 128, 1_429)),
        ("qqp", PaperBudget(5, 3e-4, 4, 256, 128, 1_667)),
        ("common_gen", PaperBudget(5, 1e-4, 1, 512, 128, 1_112)),
    ],
)
def test_a_datasets_budget_is_the_papers(name, budget):
    assert budgets.get_dataset_budget(name) == budget


def test_every_training_dataset_has_a_budget_and_that_of_one_prompt_is_its_prompts():
    for name in {spec.dataset for spec in TRAINED}:
        assert budgets.get_dataset_budget(name).max_answer == 128
    assert budgets.get_dataset_budget("wiki_bio") == of("wiki_bio/who")


@pytest.mark.parametrize(
    ("task", "epochs", "batch_size"),
    [
        ("wiki_auto/simplification_1", 1, 2),
        ("ct0_gigaword/constrain_end+make_a_title", 1, 8),
        ("ct0_gigaword/constrain_start+make_a_title", 1, 8),
        ("ct0_gigaword/constrain_contain+make_a_title", 1, 8),
        ("haiku/do_nothing", 10, 8),
        ("covid_qa/covid_qa_deepset", 50, 8),
        ("eli5/generate_a_question_1", 2, 4),
        ("emdg/dialogue_with_emotion", 2, 4),
        ("esnli/explain_why", 1, 8),
        ("twitter/tweet_as+about", 8, 8),
    ],
)
def test_a_targets_budget_is_the_papers(task, epochs, batch_size):
    wanted = PaperBudget(epochs, 1e-4, batch_size, 512, 256, 100_000)
    assert budgets.get_target_expert_budget(specs.find_task(task)) == wanted


def test_a_target_without_an_expert_is_refused_with_the_nearest_that_has_one():
    other = specs.find_task("wiki_auto/simplification_2")
    with pytest.raises(UserError, match=r"'wiki_auto/simplification_2' .* mean 'wiki_auto/simplification_1'"):
        budgets.get_target_expert_budget(other)


@pytest.mark.parametrize(
    ("rows", "budget", "steps"),
    [
        (25_262, COMMON, 5 * 3_158),  # CosmosQA: 3,157 full steps and one of 6 rows an epoch, 15.8 thousand
        (5_452, PaperBudget(10, 1e-4, 16, 256, 128, 10_000), 10 * 341),  # TREC
        (49_401, PaperBudget(5, 1e-4, 16, 256, 128, 49_401), 5 * 3_088),  # PAWS
        (10_000, PaperBudget(5, 1e-4, 1, 512, 128, 10_000), 50_000),  # Multi-News
        (16, COMMON, 10),
        (16, replace(COMMON, epochs=0.5), 1),
        (17, replace(COMMON, epochs=0.5), 2),  # half of three steps is two
        (1, replace(COMMON, epochs=2), 2),
    ],
)
def test_steps_are_epochs_of_full_batches_and_a_last_one_of_what_is_left(rows, budget, steps):
    assert budgets.count_steps(budget, rows) == steps


def test_a_fully_trained_dataset_experts_budget_is_the_same_for_all():
    for name in {spec.dataset for spec in TRAINED}:
        assert budgets.get_full_finetuning_budget(name) == PaperBudget(5, 1e-4, 128, 512, 128, 100_000)
    # 100,000 rows are 781 full steps of 128 and one of 32.
    assert budgets.count_steps(budgets.FULL, 100_000) == 5 * 782


@pytest.mark.parametrize("table", [budgets.get_dataset_budget, budgets.get_full_finetuning_budget])
def test_an_unknown_dataset_is_refused_with_the_nearest(table):
    with pytest.raises(UserError, match=r"'cosmosqa' is wanted.* Did you mean 'cosmos_qa'"):
        table("cosmosqa")


def test_a_task_without_a_budget_is_refused():
    with pytest.raises(UserError, match="'hellaswag'"):
        of("hellaswag/how_ends")
    with pytest.raises(UserError, match=r"'mini_sentiment_film' is wanted, .* no such dataset"):
        of("mini_sentiment_film/after the film")
    with pytest.raises(UserError, match=r"No prompt named 'no_prompt_txt' .*'no_prompt_text'"):
        budgets.get_prompt_expert_budget(
            replace(specs.find_task("cosmos_qa/no_prompt_text"), prompt="no_prompt_txt")
        )
    with pytest.raises(UserError, match=r"for all of 'ct0_gigaword' is wanted, .* no `dataset_expert`"):
        budgets.get_dataset_budget("ct0_gigaword")
