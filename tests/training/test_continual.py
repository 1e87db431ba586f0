"""Continual learning: experts join a library, find the tasks they are for, and change nothing there."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from elm_jax.data import task_selection
from elm_jax.evaluation import evaluate
from elm_jax.evaluation.config import EvaluationConfig
from elm_jax.experts.library import Library
from elm_jax.routing.index import index
from elm_jax.training.train import train_experts
from tests.run_fixtures import BOTTLENECK, UNSEEN
from tests.training_configs import train_config

TRAINED, TASK = "mini_opposite_word", "mini_opposite_swap"
CONFIG = train_config(steps=2, batch_size=4, rate=1e-2, options=BOTTLENECK[1], dropout=0.0)


def files(*folders):
    every = [path for folder in folders for path in Path(folder).rglob("*")]
    return {path: path.read_bytes() for path in every if path.is_file()}


def chosen(outcome, task):
    """The expert that each prompt of a task was given."""
    return {row.prompt: row.expert for row in outcome.report.selections if row.task == task}


@pytest.mark.nightly
def test_experts_that_join_a_library_serve_new_tasks_and_leave_old_scores_as_they_were(make_run):
    run = make_run(words=[TRAINED, TASK])
    place = run.workspace
    old = Library.open(place.library).ids()
    tasks = task_selection.select_tasks([UNSEEN, TASK], run.source, evaluation=True)
    config = EvaluationConfig(methods=("roe",), queries=6, oracle=True)
    before = evaluate.evaluate(run, tasks, config)
    assert set(chosen(before, TASK).values()) <= set(old)
    kept, scores = files(place.library, place.base), files(place.scores)

    added = train_experts(run, task_selection.select_tasks([TRAINED], run.source), CONFIG)
    assert index(run, size=4) == sorted(added)
    after = evaluate.evaluate(run, tasks, config)
    now = files(place.root)
    assert {path: now[path] for path in kept | scores} == kept | scores
    assert set(chosen(after, TASK).values()) <= set(added)
    assert chosen(after, UNSEEN) == chosen(before, UNSEEN)

    # What the old experts get is the same bytes when it is scored anew, the new ones beside them.
    shutil.rmtree(place.scores)
    evaluate.evaluate(run, tasks, replace(config, experts=old))
    assert files(place.scores) == scores
