"""Few-shot fine-tuning: a retrieved expert is trained on a few labelled rows, which count for no method."""

import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.evaluation import evaluate
from elm_jax.evaluation import scorer_selection as choosing
from elm_jax.evaluation.config import EvaluationConfig
from elm_jax.evaluation.methods import parse_method
from elm_jax.experts.library import Library
from elm_jax.models import paths
from tests.run_fixtures import ROWS, TRAINED

FIXED = f'fixed:expert="{TRAINED[1]}"'
TUNED = f"tuned={FIXED}+finetune:shots=4,steps=3,rate=0.01"


@pytest.fixture(scope="module")
def run(make_run):
    return make_run()


@pytest.fixture(scope="module")
def outcome(run, unseen):
    config = EvaluationConfig(methods=[f"one={FIXED}", TUNED, "roe+finetune:shots=4,steps=3"], queries=4)
    return evaluate.evaluate(run, unseen, config)


def test_the_method_has_seen_a_few_labels_and_one_expert_is_trained_further():
    method = parse_method("roe:k=3+finetune:shots=8")
    assert (method.labels, method.merge, method.merge_options) == ("few", "finetune", {"shots": 8})
    assert parse_method(TUNED).merge == "finetune"
    wrong = ("roe+finetune:shots=0", "roe+finetune:steps=1.5", "base+finetune", "oracle+finetune")
    for text in (*wrong, "roe:experts=2+finetune", "uniform+finetune"):
        with pytest.raises(UserError):
            parse_method(text)


def test_the_chosen_expert_moves_by_the_tasks_rows_and_stays_as_it_was_in_the_library(run, outcome, unseen):
    chosen = choosing.load_selection(run.workspace)
    library, composites = Library.open(run.workspace.library), Library.open(run.workspace.composites)
    names = [chosen.scorers["tuned"][spec.id] for spec in unseen]
    assert len(set(names)) == len(unseen)
    before = library.load_expert(TRAINED[1])
    for name, task in zip(names, unseen, strict=True):
        made = composites.load_expert(name)
        assert made.spec.recipe["merged_from"] == [TRAINED[1]]
        assert len(made.spec.recipe["shots"]) == 4
        assert made.spec.datasets == tuple(sorted({*before.spec.datasets, task.dataset}))
        moved = paths.flatten(made.params)
        apart = {
            path: np.abs(moved[path] - leaf).max() for path, leaf in paths.flatten(before.params).items()
        }
        # Three steps at a rate that falls from 0.01: near where it began, and not there.
        assert 1e-3 < max(apart.values()) < 0.1
    assert library.verify() == []


def test_rows_that_it_was_trained_on_are_scored_for_no_method(outcome, unseen):
    told = {row.method: row for row in outcome.report.methods}
    assert (told["tuned"].labels, told["one"].labels) == ("few", "none")
    counts = {(row.method, row.prompt): row.n for row in outcome.report.rows}
    assert len(set(counts.values())) == 1
    assert next(iter(counts.values())) in (ROWS, ROWS - 4)
