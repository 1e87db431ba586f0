"""Recipes that bind parameters of `evaluate` and `run_pipeline` from before are read with a warning."""

import inspect

import gin
import pytest

from elm_jax import moved
from elm_jax.errors import UserError
from elm_jax.evaluation.config import EvaluationConfig
from elm_jax.evaluation.evaluate import evaluate
from elm_jax.launch import recipes
from elm_jax.pipelines.pipeline import PipelineConfig, run_pipeline

OLD = """
from __gin__ import dynamic_registration
import elm_jax

elm_jax.evaluate:
  run = '{run}'
  tasks = ('mini-unseen',)
  queries = 4
  by = 'mean'
"""


@pytest.fixture(autouse=True)
def _no_trace_of_gin():
    yield
    gin.clear_config()


def test_an_old_recipe_is_read_with_a_warning_that_names_the_new_parameter(tmp_path):
    (tmp_path / "old.gin").write_text(OLD.format(run=tmp_path / "nowhere"))
    bound = recipes.bind(evaluate, [str(tmp_path / "old.gin")])
    with (
        pytest.warns(
            FutureWarning, match=r"elm_jax\.evaluate\.queries .* elm_jax\.EvaluationConfig\.queries"
        ),
        pytest.warns(
            FutureWarning, match=r"elm_jax\.evaluate\.by .* elm_jax\.EvaluationConfig\.normalization"
        ),
        pytest.raises(UserError, match="nowhere"),
    ):
        bound()


def test_a_parameter_that_never_was_is_refused_still(tmp_path):
    (tmp_path / "wrong.gin").write_text(OLD.format(run="here").replace("by =", "score ="))
    with pytest.raises(UserError, match="score"):
        recipes.bind(evaluate, [str(tmp_path / "wrong.gin")])


def test_old_parameters_are_in_no_signature():
    assert list(inspect.signature(evaluate).parameters)[:3] == ["run", "tasks", "config"]
    assert not {"queries", "by"} & set(inspect.signature(evaluate).parameters)


def test_old_parameters_go_where_they_are_now():
    with pytest.warns(FutureWarning):
        found = moved.with_old_parameters(evaluate, {"run": "x", "by": "mean", "told": print, "oracle": True})
    config = EvaluationConfig(normalization="mean", oracle=True)
    assert found == {"run": "x", "config": config, "on_estimate": print}
    with pytest.warns(FutureWarning):
        found = moved.with_old_parameters(
            run_pipeline, {"keys": 7, "queries": 5, "config": PipelineConfig(seed=1)}
        )
    assert found["config"] == PipelineConfig(seed=1, keys=7, evaluation=EvaluationConfig(queries=5))


def test_new_parameters_go_through_without_a_warning():
    arguments = {"run": "x", "config": EvaluationConfig(), "dry_run": True}
    assert moved.with_old_parameters(evaluate, arguments) == arguments
