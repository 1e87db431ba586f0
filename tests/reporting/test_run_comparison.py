"""Two runs against each other: the second minus the first, on the same rows or not at all."""

import dataclasses

import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.reporting import run_comparison, significance
from elm_jax.reporting.summary import PairedTest


@pytest.fixture
def runs(make_task):
    def run(counts):
        return [
            make_task(task, "roe", [True] * n + [False] * (4 - n))
            for task, n in zip(("a/1", "a/2", "b/1"), counts, strict=True)
        ]

    return {"roe": run((1, 0, 2)), "base": run((0, 0, 0))}, {"roe": run((3, 2, 2)), "other": run((4, 4, 4))}


def test_methods_of_both_runs_are_compared_second_minus_first(runs):
    (row,) = run_comparison.compare_methods(*runs, test=PairedTest(50))
    assert (row.a, row.b, row.comparisons) == ("roe", "roe", 1)
    # a: (3 + 2) / 8 - 1 / 8, b: nothing.
    assert row.difference == pytest.approx(0.5 / 2)
    assert (row.first.accuracy, row.second.accuracy) == pytest.approx((5 / 16, 9 / 16))
    assert (row.better_a, row.better_b) == (3, 0)
    assert [(told.task, told.difference) for told in row.by_task] == [("a", 0.5), ("b", 0.0)]


def test_named_pairs_are_compared_and_corrected_for_their_number(runs):
    rows = run_comparison.compare_methods(*runs, [("base", "other"), ("roe", "roe")], test=PairedTest(50))
    assert [(row.b, row.a) for row in rows] == [("roe", "roe"), ("roe", "roe")]
    assert rows[0].difference == 1.0
    assert [row.p_holm for row in rows] == list(significance.holm_correction(row.p for row in rows))


def test_a_run_against_itself_does_not_differ(make_task):
    rng = np.random.default_rng(0)
    run = {"roe": [make_task(f"a/{n}", "roe", rng.random(30) < 0.5) for n in range(2)]}
    (row,) = run_comparison.compare_methods(run, run, test=PairedTest(50))
    assert (row.difference, row.p, row.p_mcnemar) == (0.0, 1.0, 1.0)


def test_datasets_that_either_side_saw_are_left_out(runs):
    first, second = runs
    second["roe"][0] = dataclasses.replace(second["roe"][0], seen=True)
    (row,) = run_comparison.compare_methods(first, second, test=PairedTest(50))
    assert (row.tasks, [told.task for told in row.by_task]) == (1, ["b"])
    second["roe"][2] = dataclasses.replace(second["roe"][2], seen=True)
    with pytest.raises(UserError, match="neither 'roe' nor 'roe' was trained on"):
        run_comparison.compare_methods(first, second, [("roe", "roe")])
    with pytest.raises(UserError, match="none that both runs were"):
        run_comparison.compare_methods(first, second)


def test_methods_that_saw_every_dataset_are_left_out_unless_they_are_named(runs, make_task):
    seen = [dataclasses.replace(make_task(f"{name}/1", "multitask", [True]), seen=True) for name in "ab"]
    first, second = ({**run, "multitask": seen} for run in runs)
    assert [row.a for row in run_comparison.compare_methods(first, second, test=PairedTest(50))] == ["roe"]


def test_the_tables_show_both_means_and_every_task(runs):
    means, by_task = run_comparison.comparison_tables(
        run_comparison.compare_methods(*runs, test=PairedTest(50))
    )
    assert means.rows[0][0] == "roe"
    assert means.rows[0][1].startswith("31.3 [")
    assert means.rows[0][3] == "+25.0"
    assert by_task.header == ("method", "a", "b")
    assert by_task.rows[0][2] == "0.0 [0.0, 0.0]"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "a/9"}, "'a/1' in the first run alone .2 such tasks"),
        (
            {"row_ids": ("row-0", "row-1", "row-2", "row-9")},
            "'a/1' in both runs, got row 'row-3' in the first run alone .2 such rows",
        ),
        ({"labels": (0, 1, 2, 1)}, "got 0 for row 'row-3' in the first run and 1 in the second run"),
    ],
)
def test_runs_that_differ_in_tasks_rows_or_labels_are_refused(runs, change, message):
    first, second = runs
    second["roe"][0] = dataclasses.replace(second["roe"][0], **change)
    with pytest.raises(UserError, match=message):
        run_comparison.compare_methods(first, second)


def test_runs_without_a_method_in_common_or_an_unknown_one_are_refused(runs):
    first, second = runs
    with pytest.raises(UserError, match="got base in the first run and roe, other in the second run"):
        run_comparison.compare_methods({"base": first["base"]}, second)
    with pytest.raises(UserError, match="No method named 'rose' in the first run"):
        run_comparison.compare_methods(first, second, [("rose", "roe")])
