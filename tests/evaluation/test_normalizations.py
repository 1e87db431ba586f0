"""Scores after premises: what stands in the place of a prompt is scored as a prompt, once for a task."""

import json

import numpy as np
import pytest

from elm_jax.data import task_rows
from elm_jax.evaluation import ranking, results_cache
from elm_jax.evaluation.config import ScoringOptions
from elm_jax.evaluation.results_cache import Cell
from elm_jax.evaluation.tasks import load_tasks
from elm_jax.experts.lookup import BASE_SCORER
from elm_jax.scoring import scorer
from elm_jax.scoring.buckets import PromptWithChoices
from elm_jax.tasks import data_source, rendering
from tests.run_fixtures import ROWS

PREMISE = "next to the suitcase"


@pytest.fixture(scope="module")
def run(make_run):
    return make_run(experts=(), keyed=False)


@pytest.fixture(scope="module")
def tasks(run, unseen):
    return load_tasks(run, unseen[:1])


@pytest.fixture(scope="module")
def scores(run, tasks):
    """Returns the base's scores of the task by a normalization."""

    def find(normalization):
        cell = Cell(next(iter(tasks)), BASE_SCORER)
        options = ScoringOptions(normalization=normalization)
        return np.array(ranking.score_cells(run, [cell], tasks, options)[cell].scores)

    return find


def after(run, tasks, text):
    """The scores of the task's two choices after a text, by the scorer alone."""
    (task,) = tasks.values()
    (prompt,) = task_rows.tokenize_texts([text], run.tokenizer, run.lengths.prompt)
    row = PromptWithChoices(prompt, task.prompts[0].answers)
    return scorer.score_rows(run.base.config, run.base.params, [row])[0]


def test_pmi_takes_off_what_choices_score_after_the_premise(run, tasks, scores):
    found = scores(f"pmi:{PREMISE}")
    np.testing.assert_allclose(found, scores("sum") - after(run, tasks, PREMISE), atol=1e-4)


def test_contextual_divides_shares_by_those_of_the_mean_probability_without_content(run, tasks, scores):
    def shares(sums):
        each = np.exp(sums - sums.max(axis=-1, keepdims=True))
        return each / each.sum(axis=-1, keepdims=True)

    asked = '{0} asks : is the " {0} " bigger or smaller than a suitcase ?'
    (spec,) = (task.spec for task in tasks.values())
    texts = rendering.render_content_free(spec, data_source.Source())
    assert texts == [asked.format(text).strip() for text in ("N/A", "[MASK]", "")]
    empty = np.mean([np.exp(np.float64(after(run, tasks, text))) for text in texts], axis=0)
    expected = np.log(shares(scores("sum")) / (empty / empty.sum()))
    np.testing.assert_allclose(scores("contextual"), expected, atol=1e-4)


def test_characters_are_those_of_the_choices_texts(tasks, scores):
    (task,) = tasks.values()
    lengths = [[len(choice) for choice in example.choices] for example in task.examples]
    np.testing.assert_allclose(scores("characters"), scores("sum") / lengths, rtol=1e-5)


def test_files_of_other_premises_and_exponents_lie_apart(run, tasks, scores):
    ways = ("length:0.5", "length:2", f"pmi:{PREMISE}", "pmi:next")
    for way in ways:
        scores(way)
    (folder,) = {
        results_cache.cell_file(run.workspace.scores, Cell(task, BASE_SCORER), (), limit=ROWS).parent
        for task in tasks
    }
    heads = [json.loads(file.read_text().splitlines()[0]) for file in folder.glob("*.jsonl")]
    assert {head["score"] for head in heads} >= set(ways)
    assert {head["premise"] for head in heads if "premise" in head} >= {PREMISE, "next"}
