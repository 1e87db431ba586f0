"""Tracking of reports: what a tracker gets of an evaluation."""

import pytest

import elm_jax
from elm_jax.errors import UserError
from elm_jax.telemetry import trackers
from elm_jax.telemetry.trackers import MetricPoint


class Kept:
    """A tracker that keeps what it gets."""

    def __init__(self, directory, settings):
        self.points, self.ended, self.closed = [], [], False
        KEPT.append((directory, dict(settings), self))

    def add(self, batch, points):
        self.points += points

    def end(self, series):
        self.ended += series

    def close(self):
        self.closed = True


KEPT = []


def test_a_tracker_gets_a_point_of_every_method_of_an_evaluation(make_run, unseen, monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "kept", Kept)
    KEPT.clear()
    run = make_run()
    config = elm_jax.EvaluationConfig(methods=["uniform"], name="first", trackers=["kept"])
    result = elm_jax.evaluate(run, unseen, config)
    ((directory, settings, kept),) = KEPT
    assert (directory, settings["evaluation"]) == (run.workspace.logs / "kept", "first")
    means = {row.method: row for row in result.report.means}
    expected = []
    for method in ("base", "uniform"):
        own = {row.task: row.accuracy for row in result.report.tasks if row.method == method}
        values = {f"accuracy/{task}": accuracy for task, accuracy in own.items()}
        means_of = {"macro_mean": means[method].macro, "micro_mean": means[method].micro}
        values |= {f"accuracy/{name}": value for name, value in means_of.items()}
        expected.append(MetricPoint(f"evaluations/first/{method}", 0, values))
    assert sorted(kept.points, key=lambda point: point.series) == expected
    assert kept.closed
    assert set(kept.ended) == {point.series for point in expected}


def test_an_unknown_tracker_is_refused_before_a_row_is_read(make_run, unseen):
    run = make_run()
    with pytest.raises(UserError, match="tensorboard"):
        elm_jax.evaluate(run, unseen, elm_jax.EvaluationConfig(trackers=["tensorbord"]))
    assert not list(run.workspace.scores.glob("*"))
