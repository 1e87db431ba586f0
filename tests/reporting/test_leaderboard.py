"""The leaderboard: methods of several evaluations, those on other rows apart."""

import pytest

from elm_jax.errors import UserError
from elm_jax.reporting.leaderboard import leaderboard_tables, rank_methods
from elm_jax.reporting.summary import PairedTest, ReportInputs, build_report


def report_of(make_task, right, rows=4, **environment):
    scores = [make_task("a/1", name, [True] * n + [False] * (rows - n)) for name, n in right.items()]
    return build_report(ReportInputs(scores, environment=environment), test=PairedTest(10))


def test_methods_are_ranked_among_those_on_the_same_rows(make_task):
    reports = [
        ("one", report_of(make_task, {"base": 1, "roe": 3})),
        ("two", report_of(make_task, {"base": 1, "bm25": 4})),
        ("few", report_of(make_task, {"base": 2}, rows=2, limit=2)),
    ]
    few, whole = leaderboard_tables(rank_methods(reports))
    assert [row[:2] for row in whole.rows] == [
        ("bm25", "two"),
        ("roe", "one"),
        ("base", "one"),
        ("base", "two"),
    ]
    assert [row[:2] for row in few.rows] == [("base", "few")]
    assert "Limited to 2 rows" in few.caption
    assert "Limited" not in whole.caption


def test_nothing_to_rank_is_said():
    with pytest.raises(UserError):
        rank_methods([])
