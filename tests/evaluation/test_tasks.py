"""An evaluation renders and tokenises each task once, whatever its methods read."""

import sys
from collections import Counter

import pytest

from elm_jax.data import task_selection
from elm_jax.evaluation import evaluate
from elm_jax.evaluation.config import EvaluationConfig
from elm_jax.evaluation.tasks import load_tasks
from elm_jax.prompting import render as module
from tests.run_fixtures import ROWS, UNSEEN

METHODS = ("roe", "roe_per_instance", "bm25", "roe:experts=2+average", "lorahub:shots=2,trials=8")


@pytest.fixture(scope="module")
def run(make_run):
    return make_run(words=["mini_opposite_word"])


@pytest.fixture
def rendered(monkeypatch):
    """Counts how often the renderer gets the rows of a (template, split)."""
    counts, real = Counter(), module.render

    def render(rows, template, **options):
        rows = list(rows)
        counts[template.id, rows[0]["row_id"].partition("-")[0]] += 1
        return real(rows, template, **options)

    for name, each in list(sys.modules.items()):
        if name.startswith("elm_jax.") and getattr(each, "render", None) is real:
            monkeypatch.setattr(each, "render", render)
    return counts


@pytest.mark.parametrize("normalization", ["mean", "calibrated"])
def test_an_evaluation_renders_each_task_and_split_once(run, rendered, normalization):
    specs = task_selection.select_tasks([UNSEEN, "mini_opposite_word"], evaluation=True)
    config = EvaluationConfig(methods=METHODS, queries=4, normalization=normalization, oracle=True)
    estimates = []
    result = evaluate.evaluate(run, specs, config, on_estimate=estimates.append)
    assert {row.task for row in result.report.rows} == {UNSEEN, "mini_opposite_word"}
    assert estimates
    # LoraHub's labelled rows are of the training split, where a task has one.
    splits = Counter(split for _, split in rendered)
    assert splits == {"validation": 4, "train": 2}
    assert set(rendered.values()) == {1}


def test_a_tasks_record_has_its_rows_as_text_and_as_token_ids(run, unseen):
    tasks = load_tasks(run, unseen)
    assert list(tasks) == [spec.id for spec in unseen]
    task = tasks[unseen[0].id]
    assert task.is_ranked
    assert len(task.examples) == len(task.prompts) == ROWS
    assert task.row_ids((1, 3)) == (task.examples[1].row_id, task.examples[3].row_id)
    assert len(task.prompts[0].answers) == len(task.examples[0].choices)
    assert repr(task) == f"EvaluationTask({task.id!r}, {ROWS} rows)"
