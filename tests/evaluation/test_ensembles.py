"""Ensembles: experts of any kind score a task's choices together, and each is scored once."""

import json

import numpy as np
import pytest
from scipy.special import logsumexp

from elm_jax.errors import UserError
from elm_jax.evaluation import evaluate, ranking, results_cache, scorer_selection
from elm_jax.evaluation.config import EvaluationConfig
from elm_jax.evaluation.ensembles import Ensemble, combine_scores
from elm_jax.evaluation.methods import parse_method
from elm_jax.evaluation.results_cache import Cell
from tests.run_fixtures import BOTTLENECK, LORA, ROWS, TRAINED

KINDS = dict(zip(TRAINED, (LORA, BOTTLENECK, ("full", {}), BOTTLENECK), strict=True))
METHODS = (
    "shares=uniform+ensemble",
    "logs=uniform+ensemble:of=log_probabilities",
    "votes=roe:experts=2,k=8,weighting=votes+ensemble:of=log_probabilities",
    "one=roe+ensemble",
)


@pytest.fixture(scope="module")
def run(make_run):
    return make_run(KINDS)


@pytest.fixture(scope="module")
def outcome(run, unseen):
    return evaluate.evaluate(run, unseen, EvaluationConfig(methods=METHODS, queries=6))


def kept(run, task, expert):
    where = results_cache.cell_file(run.workspace.scores, Cell(task, expert), (), limit=ROWS)
    return np.array([json.loads(line)["scores"] for line in where.read_text().splitlines()[1:]])


def scores_of(outcome, run, method):
    """What a report says of a method: by task, how many rows are right."""
    return {row.prompt: round(row.accuracy * row.n) for row in outcome.report.rows if row.method == method}


def right(run, task, scores):
    where = results_cache.cell_file(run.workspace.scores, Cell(task, TRAINED[0]), (), limit=ROWS)
    labels = [json.loads(line)["label"] for line in where.read_text().splitlines()[1:]]
    return int((scores.argmax(axis=1) == labels).sum())


def test_an_ensemble_of_experts_of_three_kinds_is_the_mean_of_their_shares_or_of_their_scores(
    outcome, run, unseen
):
    for spec in unseen:
        each = np.stack([kept(run, spec.id, expert) for expert in TRAINED])
        shares = each - logsumexp(each, axis=-1, keepdims=True)
        expected = logsumexp(shares, axis=0) - np.log(4)
        assert scores_of(outcome, run, "shares")[spec.prompt] == right(run, spec.id, expected)
        assert scores_of(outcome, run, "logs")[spec.prompt] == right(run, spec.id, each.mean(axis=0))


def test_votes_weigh_what_the_members_say(outcome, run, unseen):
    chosen = scorer_selection.load_selection(run.workspace)
    for spec in unseen:
        ensemble = chosen.scorers["votes"][spec.id]
        routed = next(each for each in chosen.selections if each.task == spec.id and "k=8" in each.router)
        shares = [routed.votes[member] for member in ensemble.members]
        assert len(shares) == 2
        np.testing.assert_allclose(ensemble.weights, np.divide(shares, sum(shares)))
        each = [kept(run, spec.id, expert) for expert in ensemble.members]
        expected = sum(share * own for share, own in zip(ensemble.weights, each, strict=True))
        assert scores_of(outcome, run, "votes")[spec.prompt] == right(run, spec.id, expected)


def test_what_was_chosen_is_read_as_it_was_written_and_one_expert_is_no_ensemble(outcome, run, unseen):
    del outcome
    found = scorer_selection.load_selection(run.workspace).scorers
    assert found["shares"][unseen[0].id] == Ensemble(tuple(sorted(TRAINED)), (0.25,) * 4, "probabilities")
    assert found["logs"][unseen[0].id].of == "log_probabilities"
    assert found["one"][unseen[0].id] in TRAINED


def test_members_share_their_cells_with_every_other_method():
    two = Ensemble(("a/1", "b/1"), (0.5, 0.5), "probabilities")
    assert ranking.cells_of_scorer("t/1", two) == [Cell("t/1", "a/1"), Cell("t/1", "b/1")]


def test_one_sure_member_outweighs_doubtful_ones_in_shares_and_not_in_logarithms():
    # Shares (0.9, 0.1) and twice (0.4, 0.6): on average 0.567; and 0.9 · 0.4² is more than 0.1 · 0.6².
    scores = np.log([[0.9, 0.1], [0.4, 0.6], [0.4, 0.6]]) - np.array([[0.0], [5.0], [9.0]])
    thirds = ("a/1", "b/1", "c/1"), (1 / 3, 1 / 3, 1 / 3)
    shares = np.exp(combine_scores(Ensemble(*thirds, "probabilities"), scores))
    np.testing.assert_allclose(shares, [1.7 / 3, 1.3 / 3])
    logs = combine_scores(Ensemble(*thirds, "log_probabilities"), scores)
    np.testing.assert_allclose(logs[0] - logs[1], np.log(0.9 * 0.4**2 / (0.1 * 0.6**2)) / 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("uniform+ensemble:of=logits", "probabilities or log_probabilities.*'logits'"),
        ("uniform+ensemble:mean=1", "No option named 'mean'"),
        ("fixed:expert=x+ensemble", "no merge after 'fixed'"),
    ],
)
def test_an_ensemble_that_cannot_be_is_refused(text, said):
    with pytest.raises(UserError, match=said):
        parse_method(text)
