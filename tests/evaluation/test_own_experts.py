"""Tasks answered by their own experts: what negative transfer is measured with."""

from dataclasses import replace

import pytest

from elm_jax.data import task_selection
from elm_jax.errors import UserError
from elm_jax.evaluation import report
from elm_jax.evaluation.config import EvaluationConfig
from elm_jax.evaluation.evaluate import evaluate
from elm_jax.evaluation.own_experts import find_own_experts
from elm_jax.experts.library import Library
from elm_jax.launch import recipes
from elm_jax.reporting import page, tables
from tests.run_fixtures import ROWS, TRAINED


@pytest.fixture(scope="module")
def run(make_run):
    return make_run()


@pytest.fixture(scope="module")
def seen(run):
    config = EvaluationConfig(methods=["own", "uniform"], seen=True)
    return evaluate(run, TRAINED[:2], config).report


def test_every_task_is_answered_by_the_expert_that_was_trained_on_it(run, seen):
    config = EvaluationConfig(methods=[f'fixed:expert="{TRAINED[0]}"'], seen=True)
    fixed = evaluate(run, TRAINED[:1], config).report
    own = next(row for row in seen.rows if (row.method, row.prompt) == ("own", TRAINED[0].split("/")[1]))
    assert own.accuracy == next(row.accuracy for row in fixed.rows if row.method.startswith("fixed"))
    assert own.seen


def test_means_and_comparisons_are_over_the_seen_tasks_and_say_so(seen):
    means = {row.method: row for row in seen.means}
    assert (means["own"].labels, means["base"].labels) == ("seen", "none")
    rows = [row.accuracy for row in seen.rows if row.method == "own"]
    assert means["own"].macro == pytest.approx(sum(rows) / 2)
    (comparison,) = [row for row in seen.comparisons if row.a == "own"]
    assert comparison.difference == pytest.approx(means["own"].macro - means["base"].macro)
    assert "not zero-shot" in str(tables.methods_table(seen))


def test_without_seen_the_method_is_refused(run):
    with pytest.raises(UserError, match="--seen"):
        evaluate(run, ["mini_size_suitcase"], EvaluationConfig(methods=["own"]))


def test_a_seen_report_is_compared_over_prompts_and_with_another_as_any_is(run, seen):
    (of_rows,) = [row for row in seen.comparisons if row.a == "own"]
    stored = evaluate(run, TRAINED[:2], EvaluationConfig(methods=["own", "uniform"], seen=True))
    assert stored.report.rows == seen.rows
    compared = report.compare_over_prompts(run.workspace)
    (of_prompts,) = [row for row in compared.comparisons if row.a == "own"]
    assert of_prompts.difference == pytest.approx(of_rows.difference)
    (itself,) = report.compare_runs(run.workspace.root, run.workspace.root, ["own"])
    assert (itself.difference, itself.first.n) == (0.0, of_rows.tasks * ROWS)


@pytest.mark.parametrize(("of", "found"), [("prompt", TRAINED[1]), ("dataset", None), ("row", None)])
def test_an_own_expert_is_of_the_prompt_or_of_the_dataset(run, of, found):
    library = Library.open(run.workspace.library)
    (task,) = task_selection.select_tasks([TRAINED[1]], evaluation=True)
    if found is None:
        with pytest.raises(UserError):
            find_own_experts(library, list(TRAINED), [task], of)
    else:
        assert find_own_experts(library, list(TRAINED), [task], of) == {task.id: found}


def test_a_dataset_of_one_prompt_has_a_dataset_expert_too(make_run):
    """As `elm train` makes it: named after all prompts, and trained on the only one."""
    run = make_run(experts=TRAINED[:1])
    library = Library.open(run.workspace.library)
    expert = library.load_expert(TRAINED[0])
    dataset = expert.spec.datasets[0]
    library.add(replace(expert, spec=replace(expert.spec, id=f"{dataset}/all")))
    (task,) = task_selection.select_tasks(TRAINED[:1], evaluation=True)
    for of, found in (("dataset", f"{dataset}/all"), ("prompt", TRAINED[0])):
        assert find_own_experts(library, library.ids(), [task], of) == {task.id: found}


def test_the_recipe_sets_own_experts_beside_the_multitask_baseline(make_run):
    run = make_run()
    library = Library.open(run.workspace.library)
    expert = library.load_expert(TRAINED[2])
    datasets = ("mini_sentiment_film", "mini_size_animal")
    baseline = replace(expert, spec=replace(expert.spec, id="multitask/baseline", datasets=datasets))
    Library.open(run.workspace.composites, create=True).add(baseline)
    bindings = [f"MODEL_DIR = {str(run.workspace.root)!r}", f"EVAL_TASKS = {TRAINED!r}"]
    made = recipes.bind(evaluate, ["gin/recipes/seen_tasks.gin"], bindings)().report
    assert {row.method: row.labels for row in made.means} == {
        "base": "none",
        "multitask": "seen",
        "own": "seen",
    }
    (comparison,) = [row for row in made.comparisons if (row.a, row.b) == ("own", "multitask")]
    assert comparison.tasks == 2
    assert "Do experts on their own tasks beat multitask here?" in page.render_html(made)
