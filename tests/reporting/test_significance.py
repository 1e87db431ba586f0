"""Paired tests: hand-computed cases, properties, and a simulation of how often the interval is right."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from benchmarks.coverage import Study, measure_coverage
from elm_jax.errors import UserError
from elm_jax.reporting.significance import gap_closed, holm_correction, mcnemar_test, paired_difference


def prompts_of(make_task, method, table, dataset="a"):
    """One prompt a line of `table`, which says which rows are right."""
    return [make_task(f"{dataset}/{n}", method, list(right)) for n, right in enumerate(table)]


def test_the_difference_is_that_of_the_macro_means(make_task):
    a = prompts_of(make_task, "roe", [[1, 1, 1, 0], [1, 1, 0, 0]]) + prompts_of(
        make_task, "roe", [[1, 0]], "b"
    )
    b = prompts_of(make_task, "base", [[1, 0, 0, 0], [1, 1, 0, 0]]) + prompts_of(
        make_task, "base", [[0, 0]], "b"
    )
    found = paired_difference(a, b)
    assert (found.a, found.b) == ("roe", "base")
    # dataset a: (3/4 + 2/4) / 2 - (1/4 + 2/4) / 2 = 1/4; dataset b: 1/2 - 0 = 1/2
    assert found.difference == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert found.low <= found.difference <= found.high


def test_equal_methods_differ_by_zero_with_p_one(make_task):
    table = [[1, 0, 1, 1, 0], [0, 0, 1, 1, 1]]
    found = paired_difference(prompts_of(make_task, "a", table), prompts_of(make_task, "b", table))
    assert dataclasses.astuple(found) == ("a", "b", 0.0, 0.0, 0.0, 1.0)


def test_swapping_the_methods_turns_the_difference_around(make_task):
    rng = np.random.default_rng(1)
    a = prompts_of(make_task, "a", rng.random((3, 40)) < 0.6)
    b = prompts_of(make_task, "b", rng.random((3, 40)) < 0.5)
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert back.difference == pytest.approx(-there.difference)
    assert back.p == pytest.approx(there.p, abs=0.05)


def test_the_order_of_rows_changes_nothing(make_task):
    rng = np.random.default_rng(2)
    (a,) = prompts_of(make_task, "a", rng.random((1, 30)) < 0.6)
    (b,) = prompts_of(make_task, "b", rng.random((1, 30)) < 0.4)
    order = rng.permutation(30)
    columns = ("row_ids", "scores", "predictions", "labels")
    shuffled = dataclasses.replace(b, **{c: tuple(getattr(b, c)[i] for i in order) for c in columns})
    assert paired_difference([a], [shuffled]) == paired_difference([a], [b])


def test_the_same_rows_under_a_second_prompt_are_no_new_evidence(make_task):
    rng = np.random.default_rng(3)
    right_a, right_b = rng.random(50) < 0.6, rng.random(50) < 0.5
    once = paired_difference(prompts_of(make_task, "a", [right_a]), prompts_of(make_task, "b", [right_b]))
    twice = paired_difference(
        prompts_of(make_task, "a", [right_a] * 2), prompts_of(make_task, "b", [right_b] * 2)
    )
    assert dataclasses.astuple(twice) == pytest.approx(dataclasses.astuple(once))


def test_the_same_rows_in_another_dataset_are_new_evidence(make_task):
    rng = np.random.default_rng(3)
    right_a, right_b = rng.random(50) < 0.6, rng.random(50) < 0.5
    sides = [
        prompts_of(make_task, method, [right]) + prompts_of(make_task, method, [right], "b")
        for method, right in (("a", right_a), ("b", right_b))
    ]
    once = paired_difference(sides[0][:1], sides[1][:1])
    twice = paired_difference(*sides)
    assert twice.high - twice.low == pytest.approx((once.high - once.low) / np.sqrt(2), rel=0.1)


def test_prompts_may_cover_different_rows_of_their_dataset(make_task):
    sides = [
        [
            make_task("trec/ABBR", method, [right, right], row_ids=["1", "2"]),
            make_task("trec/open", method, [True, right, False, False], row_ids=["2", "3", "4", "5"]),
        ]
        for method, right in (("a", True), ("b", False))
    ]
    found = paired_difference(*sides)
    assert found.difference == pytest.approx((1 + 1 / 4) / 2)
    assert np.isfinite([found.low, found.high, found.p]).all()


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12))
def test_p_is_never_zero_nor_smaller_than_so_few_rows_can_show(make_task, rows):
    a, b = (
        prompts_of(make_task, name, [side]) for name, side in zip("ab", zip(*rows, strict=True), strict=True)
    )
    found = paired_difference(a, b, samples=50)
    differing = sum(x != y for x, y in rows)
    assert min(1.0, 2 / 2**differing) <= found.p <= 1.0
    assert found.low <= found.high


def test_p_is_not_zero_where_every_sample_agrees(make_task):
    a, b = prompts_of(make_task, "a", [[1] * 500]), prompts_of(make_task, "b", [[0] * 500])
    assert paired_difference(a, b, samples=999).p == pytest.approx(2 / 1000)
    a, b = prompts_of(make_task, "a", [[1] * 5000]), prompts_of(make_task, "b", [[0] * 5000])
    assert mcnemar_test(a, b).p > 0


@pytest.mark.nightly
def test_the_interval_covers_the_truth_in_93_to_97_of_100_studies_and_p_keeps_its_level(make_task):
    rng = np.random.default_rng(0)
    covered = false_alarms = unclustered = coins = 0
    for _ in range(500):
        share = {"a": 0.6, "b": 0.5}
        tables = {"a": [], "b": [], "c": []}
        for dataset, rows in (("x", 60), ("y", 90)):
            # Rows are hard or easy for both methods, and most of them come out alike under all prompts.
            luck, alike = rng.random(rows), rng.random(rows) < 0.7
            for method in tables:
                own = np.where(rng.random(rows) < 0.5, luck, rng.random(rows))
                draws = [np.where(alike, own, rng.random(rows)) for _ in range(3)]
                table = [draw < share.get(method, 0.5) for draw in draws]
                tables[method] += prompts_of(make_task, method, table, dataset)
        found = paired_difference(tables["a"], tables["b"], samples=400, seed=int(rng.integers(2**31)))
        covered += found.low <= 0.1 <= found.high
        false_alarms += paired_difference(tables["b"], tables["c"], samples=400).p < 0.05
        coins += mcnemar_test(tables["b"], tables["c"]).p < 0.05
        found = paired_difference(*(map(fresh_rows, (tables["a"], tables["b"]))), samples=400)
        unclustered += found.low <= 0.1 <= found.high
    assert 0.93 * 500 <= covered <= 0.97 * 500
    assert false_alarms <= 0.07 * 500
    assert coins <= 0.07 * 500
    # A bootstrap that takes every prompt of a row for a row of its own is too sure: the study can fail.
    assert unclustered < 0.87 * 500


def fresh_rows(scores):
    """The same outcomes with rows that share no name between prompts."""
    return [
        dataclasses.replace(task, row_ids=tuple(f"{task.task}-{row}" for row in task.row_ids))
        for task in scores
    ]


def test_mcnemar_throws_a_coin_for_each_row_that_only_one_gets_right(make_task):
    a = prompts_of(make_task, "a", [[1, 1, 1, 1, 1, 1, 0, 0]])
    b = prompts_of(make_task, "b", [[0, 0, 0, 0, 0, 1, 1, 0]])
    found = mcnemar_test(a, b)
    assert (found.better_a, found.better_b) == (5, 1)
    assert found.p == pytest.approx(2 * (1 + 6) / 2**6)  # 0 or 1 of 6 coins, on either side
    assert mcnemar_test(a, a).p == 1.0


def test_mcnemar_counts_a_row_once_for_the_method_that_gets_it_right_under_more_prompts(make_task):
    a = prompts_of(make_task, "a", [[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0]])
    b = prompts_of(make_task, "b", [[0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]])
    found = mcnemar_test(a, b)
    # Row by row a is right under 3, 1, 1 and 0 prompts more than b under 0, 0, 1 and 2.
    assert (found.better_a, found.better_b) == (2, 1)
    assert found.p == 1.0  # at most 1 of 3 coins on either side: 2 (1 + 3) / 8


def test_rows_of_one_name_in_two_datasets_are_two_rows_to_mcnemar(make_task):
    a = [make_task(f"{dataset}/1", "a", [1, 0]) for dataset in "xy"]
    b = [make_task(f"{dataset}/1", "b", [0, 0]) for dataset in "xy"]
    assert (mcnemar_test(a, b).better_a, mcnemar_test(a, b).better_b) == (2, 0)


def test_the_share_of_the_gap_is_the_way_from_the_baseline_to_the_oracle(make_task):
    base, method, oracle = (
        prompts_of(make_task, name, [[right >= 3 - reach for right in range(4)] * 10])
        for name, reach in (("base", 0), ("roe", 1), ("oracle", 2))
    )
    found = gap_closed(method, base, oracle)
    # 1/4, 2/4 and 3/4 of the rows are right.
    assert found.share == pytest.approx(0.5)
    assert 0.2 < found.low < 0.5 < found.high < 0.8
    assert dataclasses.astuple(gap_closed(oracle, base, oracle)) == (1.0, 1.0, 1.0)
    assert dataclasses.astuple(gap_closed(base, base, oracle)) == (0.0, 0.0, 0.0)


def test_the_interval_of_the_share_covers_the_truth_in_93_to_97_of_100_studies(make_task):
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(500):
        luck, sides = rng.random(150), []
        for share in (0.6, 0.4, 0.8):
            own = np.where(rng.random(150) < 0.7, luck, rng.random(150))
            sides.append(prompts_of(make_task, str(share), [own < share] * 2))
        found = gap_closed(*sides, samples=300, seed=int(rng.integers(2**31)))
        covered += found.low <= 0.5 <= found.high
    assert 0.93 * 500 <= covered <= 0.97 * 500


def test_without_a_gap_there_is_no_share_and_with_a_doubtful_one_no_interval(make_task):
    base, better = (prompts_of(make_task, name, [[1, right, 0, 0]]) for name, right in (("b", 0), ("o", 1)))
    assert gap_closed(better, base, base) is None
    # One row in four makes the gap, so three in ten samples have none.
    assert dataclasses.astuple(gap_closed(better, base, better)) == (1.0, None, None)


def test_holm_multiplies_the_smallest_by_the_number_and_never_falls():
    assert holm_correction([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))
    assert holm_correction([0.4, 0.9]) == pytest.approx((0.8, 0.9))
    assert holm_correction([0.7, 0.8]) == (1.0, 1.0)
    assert holm_correction([]) == ()


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_order_and_lies_between_p_and_bonferroni(ps):
    corrected = holm_correction(ps)
    assert all(p <= c <= max(p, min(1, p * len(ps))) + 1e-12 for p, c in zip(ps, corrected, strict=True))
    assert [c for _, c in sorted(zip(ps, corrected, strict=True))] == sorted(corrected)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_holm_refuses_what_is_no_p_value(p):
    with pytest.raises(UserError, match="between 0 and 1"):
        holm_correction([0.5, p])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "a/9"}, "'a/0' by 'roe' alone"),
        (
            {"row_ids": ("row-0", "row-7")},
            r"'a/0', got row 'row-1' by 'roe' alone \(2 such rows\)",
        ),
        ({"labels": (0, 2)}, "got labels 1 and 2 in row 'row-1'"),
        ({"row_ids": ("row-0", "row-0")}, "'a/0' by 'base', got 1 again"),
        ({"predictions": (1,)}, "of each column.*'a/0' by 'base'"),
        ({"row_ids": (), "labels": (), "predictions": (), "scores": ()}, "Expected rows"),
    ],
)
def test_sides_that_were_not_scored_on_the_same_rows_are_refused(make_task, change, message):
    a = make_task("a/0", "roe", [True, False])
    b = dataclasses.replace(make_task("a/0", "base", [True, True]), **change)
    with pytest.raises(UserError, match=message):
        paired_difference([a], [b])
    with pytest.raises(UserError, match=message):
        mcnemar_test([a], [b])


def test_an_empty_side_a_repeated_task_and_no_samples_are_refused(make_task):
    a = make_task("a/0", "roe", [True, False])
    with pytest.raises(UserError, match="got none of one"):
        paired_difference([a], [])
    with pytest.raises(UserError, match="twice by 'roe'"):
        paired_difference([a, a], [a])
    with pytest.raises(UserError, match="sample, got 0"):
        paired_difference([a], [a], samples=0)


def test_over_prompts_the_variance_is_that_of_rows_and_prompts_that_are_both_random(make_task):
    rng = np.random.default_rng(4)
    rows, prompts = 30, 4
    levels = np.array([[0.9], [0.6], [0.8], [0.3]])
    hard = rng.random(rows) < 0.4
    a, b = (rng.random((prompts, rows)) < level for level in (levels, np.where(hard, 0.1, 0.7)))
    found = paired_difference(prompts_of(make_task, "a", a), prompts_of(make_task, "b", b), over="prompts")
    table = a.astype(float) - b
    # Mean squares of a two-way table with one value a cell, by the book.
    grand = table.mean()
    of_rows = prompts * ((table.mean(axis=0) - grand) ** 2).sum() / (rows - 1)
    of_prompts = rows * ((table.mean(axis=1) - grand) ** 2).sum() / (prompts - 1)
    rest = table - table.mean(axis=0) - table.mean(axis=1)[:, None] + grand
    of_rest = (rest**2).sum() / ((rows - 1) * (prompts - 1))
    total = of_rows + of_prompts - of_rest
    assert total > max(of_rows, of_prompts)
    parts = ((of_rows, rows - 1), (of_prompts, prompts - 1), (of_rest, (rows - 1) * (prompts - 1)))
    freedom = total**2 / sum(square**2 / own for square, own in parts)
    half = t.ppf(0.975, freedom) * np.sqrt(total / (rows * prompts))
    assert (found.low, found.high) == pytest.approx((grand - half, grand + half))
    assert found.p == pytest.approx(2 * t.sf(grand / np.sqrt(total / (rows * prompts)), freedom), abs=1e-3)


def test_one_prompt_says_nothing_about_other_prompts(make_task):
    sides = [prompts_of(make_task, name, [[1, 0, right]]) for name, right in (("a", 1), ("b", 0))]
    with pytest.raises(UserError):
        paired_difference(*sides, over="prompts")


def test_where_methods_take_prompts_differently_only_the_test_over_prompts_keeps_its_level():
    found = measure_coverage(Study(rows=150, prompts=6, lift=0.0, method_by_prompt=0.4), 300, 200, seed=0)
    assert found.difference_over_prompts is not None
    assert found.difference_over_prompts >= 0.93
    assert found.rejected_over_prompts is not None
    assert found.rejected_over_prompts <= 0.07
    assert found.rejected > 0.2  # methods do differ under these prompts


@pytest.mark.nightly
def test_intervals_of_twenty_rows_hold_the_truth_as_often_as_they_say():
    found = measure_coverage(Study(rows=20, prompts=5, lift=0.25, method_by_prompt=0.2), 1000, 300, seed=0)
    assert 0.935 <= found.accuracy <= 0.97
    assert 0.935 <= found.difference <= 0.97
