"""Accuracies, their intervals and means, against numbers worked out by hand and against simulation."""

import dataclasses
from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elm_jax.errors import UserError
from elm_jax.records import TaskScores
from elm_jax.reporting import metrics

Z2 = 1.959963984540054**2


def test_accuracy_is_the_share_of_right_rows_with_wilsons_interval(make_task):
    found = metrics.accuracy(make_task("cb/p", "base", [True] * 8 + [False] * 2))
    centre, half = 0.8 + Z2 / 20, sqrt(Z2 * (0.8 * 0.2 / 10 + Z2 / 400))
    assert (found.n, found.accuracy) == (10, 0.8)
    assert found.low == pytest.approx((centre - half) / (1 + Z2 / 10))
    assert found.high == pytest.approx((centre + half) / (1 + Z2 / 10))


@pytest.mark.parametrize("n", [1, 3, 56, 10_000])
def test_an_interval_stays_inside_zero_and_one_and_never_closes(n):
    assert metrics.wilson_interval(0.0, n) == (0.0, pytest.approx(Z2 / (n + Z2)))
    assert metrics.wilson_interval(1.0, n) == (pytest.approx(n / (n + Z2)), 1.0)


def test_macro_and_micro_means_differ_where_datasets_have_different_numbers_of_prompts(make_task):
    scores = [
        make_task("a/1", "base", [True, True]),  # 1
        make_task("a/2", "base", [True, False]),  # 1/2
        make_task("a/3", "base", [False, False]),  # 0
        make_task("b/1", "base", [True, True, True, True]),  # 1
    ]
    assert metrics.macro_mean(scores).accuracy == pytest.approx((0.5 + 1) / 2)
    assert metrics.micro_mean(scores).accuracy == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert metrics.macro_mean(scores).n == 2 + 4


def test_the_share_of_counts_is_the_macro_mean_of_their_rows(make_task):
    scores = [
        make_task(task, "base", [True] * right + [False] * (6 - right))
        for task, right in (("a/1", 6), ("a/2", 1), ("b/1", 4))
    ]
    counts = [metrics.count_correct(task) for task in scores]
    assert [(count.n, count.right) for count in counts] == [(6, 6), (6, 1), (6, 4)]
    assert metrics.macro_accuracy(counts) == pytest.approx((7 / 12 + 4 / 6) / 2)
    assert [metrics.accuracy(count) for count in counts] == [metrics.accuracy(task) for task in scores]


def test_the_mean_of_one_task_has_the_interval_of_that_task(make_task):
    task = make_task("a/1", "base", [True] * 7 + [False] * 6)
    assert metrics.macro_mean([task]) == metrics.micro_mean([task]) == metrics.accuracy(task)


def test_a_prompt_that_repeats_another_narrows_no_interval(make_task):
    right = [True] * 7 + [False] * 6
    once = metrics.macro_mean([make_task("a/1", "base", right)])
    fifteen = metrics.macro_mean([make_task(f"a/{n}", "base", right) for n in range(15)])
    assert dataclasses.astuple(fifteen) == pytest.approx(dataclasses.astuple(once))


def test_wilsons_interval_covers_the_truth_in_93_to_97_of_100_studies():
    rng = np.random.default_rng(0)
    for share, n in ((0.5, 56), (0.3, 100), (0.8, 277), (0.06, 277)):
        right = rng.binomial(n, share, size=4000)
        ends = {count: metrics.wilson_interval(count / n, n) for count in set(right.tolist())}
        covered = np.mean([ends[count][0] <= share <= ends[count][1] for count in right.tolist()])
        assert 0.93 <= covered <= 0.97


def test_the_plain_normal_interval_would_not_pass_that_study():
    # Six in a hundred, of 40 rows: the study above can fail.
    share, n = 0.06, 40
    right = np.random.default_rng(0).binomial(n, share, size=4000) / n
    half = sqrt(Z2) * np.sqrt(right * (1 - right) / n)
    assert np.mean(np.abs(right - share) <= half) < 0.93


def test_rows_without_scores_of_choices_are_right_where_the_prediction_is_the_label(make_task):
    task = dataclasses.replace(make_task("a/1", "base", [True, False]), scores=(), predictions=(0, -1))
    assert metrics.row_credits(task).tolist() == [1, 0]
    # The right one is one of four that scored best.
    assert metrics.row_credits(dataclasses.replace(task, tied=(4, 1))).tolist() == [0.25, 0]


def tied_task(make_task):
    """Four rows: right alone, one of two, one of three, and two others that tie."""
    scores = ((0.0, -1.0, -1.0), (-2.0, -1.0, -1.0), (-1.0, -1.0, -1.0), (-1.0, -1.0, -2.0))
    task = make_task("a/1", "base", [True] * 4)
    return dataclasses.replace(task, scores=scores, predictions=(0, 1, 0, 0), labels=(0, 2, 1, 2))


def test_a_row_whose_best_choices_score_the_same_counts_its_share(make_task):
    task = tied_task(make_task)
    assert metrics.row_credits(task).tolist() == [1, 1 / 2, 1 / 3, 0]
    counted = metrics.count_correct(task)
    assert (counted.n, counted.tied) == (4, 3)
    assert counted.right == pytest.approx(1 + 1 / 2 + 1 / 3)
    assert metrics.accuracy(task).accuracy == pytest.approx((1 + 1 / 2 + 1 / 3) / 4)
    assert metrics.macro_mean([task]).accuracy == pytest.approx((1 + 1 / 2 + 1 / 3) / 4)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 5)), min_size=1, max_size=20))
def test_choices_that_all_tie_give_the_accuracy_of_guessing(rows):
    task = TaskScores(
        task="a/1",
        method="base",
        row_ids=tuple(f"row-{number}" for number in range(len(rows))),
        scores=tuple((-1.0,) * choices for choices, _ in rows),
        predictions=(0,) * len(rows),
        labels=tuple(label % choices for choices, label in rows),
    )
    assert metrics.accuracy(task).accuracy == pytest.approx(metrics.chance_accuracy(task))


@pytest.mark.parametrize("always", [True, False])
def test_a_mean_without_any_variance_is_as_sure_as_its_rows_allow(make_task, always):
    prompts = [make_task(f"a/{n}", "base", [always] * 20) for n in range(3)]
    found = metrics.macro_mean(prompts)
    assert (found.low, found.high) == metrics.wilson_interval(float(always), 20)


@pytest.mark.nightly
def test_the_intervals_of_both_means_cover_the_truth_in_93_to_97_of_100_studies(make_task):
    rng = np.random.default_rng(0)
    macro = micro = unclustered = 0
    for _ in range(1000):
        scores, apart = [], []
        for dataset, share, rows, prompts in (("a", 0.3, 40, 4), ("b", 0.7, 60, 2)):
            same, first = rng.random(rows) < 0.8, rng.random(rows) < share
            for prompt in range(prompts):  # most rows come out alike under every prompt
                right = np.where(same, first, rng.random(rows) < share).tolist()
                names = [f"{prompt}-{row}" for row in range(rows)]
                scores.append(make_task(f"{dataset}/{prompt}", "base", right))
                apart.append(make_task(f"{dataset}/{prompt}", "base", right, row_ids=names))
        mean = metrics.macro_mean(scores)
        macro += mean.low <= 0.5 <= mean.high
        mean = metrics.micro_mean(scores)
        micro += mean.low <= (4 * 0.3 + 2 * 0.7) / 6 <= mean.high
        mean = metrics.macro_mean(apart)
        unclustered += mean.low <= 0.5 <= mean.high
    assert 930 <= macro <= 970
    assert 930 <= micro <= 970
    # Prompts taken for fresh rows give intervals that are too narrow: the study can fail.
    assert unclustered < 850


def test_chance_is_the_mean_over_rows_of_one_in_the_number_of_choices(make_task):
    task = make_task("a/1", "base", [True, True], choices=2)
    mixed = dataclasses.replace(task, scores=((-1.0, -2.0), (-1.0, -2.0, -3.0, -4.0)))
    assert metrics.chance_accuracy(task) == 0.5
    assert metrics.chance_accuracy(mixed) == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_spread_tells_the_range_the_median_and_the_deviation_over_prompts(make_task):
    prompts = [make_task(f"a/{right}", "base", [True] * right + [False] * (4 - right)) for right in (1, 2, 4)]
    found = metrics.prompt_spread(prompts)
    assert (found.prompts, found.lowest, found.median, found.highest) == (3, 0.25, 0.5, 1.0)
    assert found.deviation == pytest.approx(np.std([0.25, 0.5, 1.0], ddof=1))
    assert metrics.prompt_spread(prompts[:1]).deviation == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row_ids": (), "scores": (), "predictions": (), "labels": ()}, "got none"),
        ({"predictions": (0,)}, r"got \[1, 2\]"),
        ({"row_ids": ("x", "x")}, "got 1 again"),
        ({"labels": (0, -1)}, "got -1 in row 'row-1'"),
        ({"predictions": (0, 3)}, "got 3 in row 'row-1'"),
        ({"scores": ((-1.0,), ())}, "got 1 in row 'row-1'"),
    ],
)
def test_scores_that_are_not_whole_are_refused_by_name(make_task, change, message):
    broken = dataclasses.replace(make_task("a/1", "base", [True, True]), **change)
    with pytest.raises(UserError, match=message):
        metrics.accuracy(broken)


@pytest.mark.parametrize("mean", [metrics.macro_mean, metrics.micro_mean, metrics.prompt_spread])
def test_a_mean_of_nothing_is_refused(mean):
    with pytest.raises(UserError, match="got none"):
        mean([])
