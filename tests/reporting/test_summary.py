"""A run's scores become a report: means, gaps, comparisons, and what is left out of them."""

import dataclasses

import pytest

from elm_jax.errors import UserError
from elm_jax.records import Selection
from elm_jax.reporting import significance
from elm_jax.reporting.metrics import CorrectCount
from elm_jax.reporting.records import GeneratedResult, MethodDescription
from elm_jax.reporting.summary import PairedTest, ReportInputs, build_report


def test_every_method_task_and_prompt_has_a_row_with_its_interval(make_task):
    scores = [
        make_task("cb/a/b", "base", [True, False, False, False]),
        make_task("cb/a/b", "roe", [True, True, True, False]),
    ]
    report = build_report(ReportInputs(scores))
    assert [(row.method, row.task, row.prompt, row.n) for row in report.rows] == [
        ("base", "cb", "a/b", 4),
        ("roe", "cb", "a/b", 4),
    ]
    assert [row.accuracy for row in report.rows] == [0.25, 0.75]
    assert all(row.low < row.accuracy < row.high for row in report.rows)
    assert all(row.chance == pytest.approx(1 / 3) for row in report.rows)


def test_means_name_macro_and_micro_and_the_share_of_the_oracles_gap(make_task):
    right = {"base": (1, 0, 0), "roe": (3, 2, 0), "oracle": (4, 4, 2)}
    scores = [
        make_task(task, method, [True] * n + [False] * (4 - n))
        for method, counts in right.items()
        for task, n in zip(("a/1", "a/2", "b/1"), counts, strict=True)
    ]
    base, roe, oracle = build_report(ReportInputs(scores), test=PairedTest(10)).means
    assert (base.macro, roe.macro, oracle.macro) == pytest.approx((1 / 16, 5 / 16, 3 / 4))
    assert roe.micro == pytest.approx(5 / 12)
    assert (base.gap_share, oracle.gap_share) == (0.0, 1.0)
    assert base.micro_low < base.micro < base.micro_high
    assert roe.gap_share == pytest.approx((5 - 1) / (12 - 1))
    assert [mean.labels for mean in (base, roe, oracle)] == ["none", "none", "hindsight"]


def test_a_task_is_summed_up_over_its_prompts(make_task):
    scores = [make_task("a/1", "base", [True, False]), make_task("a/2", "base", [True, True], choices=2)]
    (task,) = build_report(ReportInputs(scores)).tasks
    assert (task.prompts, task.n, task.accuracy) == (2, 2, 0.75)
    assert (task.lowest, task.median, task.highest) == (0.5, 0.75, 1.0)
    assert task.chance == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_every_method_that_used_no_hindsight_is_compared_with_the_baseline(report):
    pairs = [(row.a, row.b) for row in report.comparisons]
    assert pairs == [(m, "base") for m in ("multitask", "uniform_merge", "roe_top1", "roe_top3_merge")]
    assert {row.comparisons for row in report.comparisons} == {4}
    assert [row.p_holm for row in report.comparisons] == list(
        significance.holm_correction(row.p for row in report.comparisons)
    )


def test_given_pairs_replace_the_default_ones(make_run):
    report = build_report(
        ReportInputs(**make_run(rows=20)), pairs=[("roe_top1", "multitask")], test=PairedTest(10)
    )
    assert [(row.a, row.b, row.comparisons) for row in report.comparisons] == [("roe_top1", "multitask", 1)]
    assert report.comparisons[0].p_holm == report.comparisons[0].p


def test_both_tests_are_made_of_each_pair_and_corrected(make_run):
    report = build_report(ReportInputs(**make_run()), test=PairedTest(100))
    assert all(row.better_a + row.better_b <= 6 * 60 for row in report.comparisons)
    assert [row.p_mcnemar_holm for row in report.comparisons] == list(
        significance.holm_correction(row.p_mcnemar for row in report.comparisons)
    )


def test_methods_stand_in_blocks_by_the_labels_they_saw(make_task):
    scores = [make_task("a/1", method, [True, False]) for method in ("oracle", "lorahub", "base", "roe")]
    methods = [MethodDescription("lorahub", "lorahub", None, "few", "five rows")]
    report = build_report(ReportInputs(scores, methods=methods), test=PairedTest(10))
    assert [(mean.method, mean.labels) for mean in report.means] == [
        ("base", "none"),
        ("roe", "none"),
        ("lorahub", "few"),
        ("oracle", "hindsight"),
    ]
    assert [row.method for row in report.methods] == [row.method for row in report.rows]
    assert [(row.a, row.labels) for row in report.comparisons] == [("roe", "none"), ("lorahub", "few")]


@pytest.fixture
def with_seen(make_task):
    """`multi` was trained on a under one prompt; on b it gets 3 of 4 right where base gets 1 and oracle 4."""
    right = {"base": (0, 0, 1), "multi": (4, 4, 3), "oracle": (4, 4, 4)}
    scores = [
        make_task(task, method, [True] * n + [False] * (4 - n))
        for method, counts in right.items()
        for task, n in zip(("a/1", "a/2", "b/1"), counts, strict=True)
    ]
    scores = [
        dataclasses.replace(task, seen=True) if (task.task, task.method) == ("a/2", "multi") else task
        for task in scores
    ]
    return build_report(ReportInputs(scores), test=PairedTest(50))


def test_a_dataset_that_was_seen_is_left_out_whole_of_means_gap_and_comparisons(with_seen):
    base, multi, oracle = with_seen.means
    assert (multi.macro, multi.micro, multi.n) == (0.75, 0.75, 4)
    assert (base.macro, base.n, oracle.macro) == (0.125, 8, 1.0)
    assert (multi.left_out, base.left_out) == (("a",), ())
    assert multi.gap_share == pytest.approx((3 - 1) / (4 - 1))
    (pair,) = with_seen.comparisons
    assert (pair.a, pair.difference, pair.tasks) == ("multi", 0.5, 1)
    assert (pair.better_a, pair.better_b) == (2, 0)


def test_what_was_seen_is_shown_and_says_so(with_seen):
    assert [(row.prompt, row.seen) for row in with_seen.rows if row.method == "multi"] == [
        ("1", False),
        ("2", True),
        ("1", False),
    ]
    seen = {(row.method, row.task) for row in with_seen.tasks if row.seen}
    assert seen == {("multi", "a")}


def test_a_method_that_saw_everything_has_no_mean_and_no_comparison(make_task):
    scores = [make_task("a/1", "base", [True, False]), make_task("a/1", "multi", [True, True])]
    scores[1] = dataclasses.replace(scores[1], seen=True)
    report = build_report(ReportInputs(scores), test=PairedTest(10))
    assert (report.means[1].macro, report.means[1].micro, report.means[1].n) == (None, None, 0)
    assert report.comparisons == ()


def test_what_was_generated_makes_a_report_of_its_own():
    row = GeneratedResult("roe", "haiku", "p", 3, "bleu (intl)", 12.5, 10.0, 15.0, False)
    report = build_report(ReportInputs(generated=[row]))
    assert report.generated == (row,)
    assert [method.method for method in report.methods] == ["roe"]
    assert (report.rows, report.means, report.comparisons) == ((), (), ())


def test_a_selection_tells_its_rank_in_hindsight_and_how_near_its_voters_were(make_task):
    matrix = [
        CorrectCount("cb/p", expert, n=4, right=n, seen=expert == "w/1")
        for expert, n in (("w/1", 4), ("x/1", 3), ("y/1", 2), ("z/1", 2))
    ]
    nearest = (("y/1", 0.5), ("x/1", 0.9), ("y/1", 0.7))
    selection = Selection("cb/p", "roe", {"y/1": 1.0}, {"y/1": 2, "x/1": 1}, ("1", "2", "3"), nearest)
    report = build_report(
        ReportInputs([make_task("cb/p", "base", [True])], [selection], expert_counts=iter(matrix))
    )
    (row,) = report.selections
    assert (row.rank, row.ranked, row.similarity) == (2, 3, pytest.approx(0.6))


def test_a_selection_names_its_heaviest_expert_and_all_voters(make_task):
    selection = Selection("cb/p", "roe", {"x/1": 0.4, "y/1": 0.6}, {"x/1": 3, "y/1": 2, "z/1": 1}, ("1",) * 6)
    (row,) = build_report(
        ReportInputs([make_task("cb/p", "roe", [True])], [selection]), baseline=None
    ).selections
    assert (row.task, row.prompt, row.router) == ("cb", "p", "roe")
    assert (row.expert, row.votes, row.queries) == ("y/1", 2, 6)
    assert row.voters == {"x/1": 3, "y/1": 2, "z/1": 1}


def test_the_matrix_takes_the_family_of_an_expert_or_of_its_dataset(make_task):
    matrix = [CorrectCount("cb/p", expert, n=2, right=1) for expert in ("x/1", "x/2", "y/1")]
    report = build_report(
        ReportInputs(
            [make_task("cb/p", "base", [True])], expert_counts=matrix, families={"x": "qa", "x/2": "own"}
        )
    )
    assert [(row.expert, row.family, row.accuracy) for row in report.matrix] == [
        ("x/1", "qa", 0.5),
        ("x/2", "own", 0.5),
        ("y/1", None, 0.5),
    ]


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ([], {}, "got none"),
        ([("a/1", "base"), ("a/1", "base")], {}, "two of 'a/1' by 'base'"),
        ([("a/1", "base"), ("a/2", "base"), ("a/1", "roe")], {}, "'a/2' by 'base' but not by 'roe'"),
        ([("a/1", "base"), ("a/1", "roe"), ("a/2", "roe")], {}, "'a/2' by 'roe' but not by 'base'"),
        ([("a/1", "bass")], {}, "No method named 'base' .* Did you mean 'bass'"),
        ([("a/1", "base")], {"pairs": [("rose", "base")]}, "No method named 'rose'"),
        ([("a1", "base")], {}, "'a1'"),
    ],
)
def test_scores_that_make_no_fair_table_are_refused(make_task, scores, options, message):
    with pytest.raises(UserError, match=message):
        build_report(ReportInputs([make_task(task, method, [True]) for task, method in scores]), **options)


def test_a_selection_without_experts_is_refused(make_task):
    with pytest.raises(UserError, match="router 'roe' for 'a/1'"):
        build_report(ReportInputs([make_task("a/1", "base", [True])], [Selection("a/1", "roe", {}, {}, ())]))


def test_values_that_json_does_not_know_are_written_as_text(make_task, tmp_path):
    report = build_report(
        ReportInputs([make_task("a/1", "base", [True])], [], {"out": tmp_path, "shape": (1, 2)})
    )
    assert report.environment == {"out": str(tmp_path), "shape": [1, 2]}


def test_methods_that_a_paired_test_does_not_tell_apart_from_the_best_are_named(make_task):
    rights = {"base": [False] * 40, "roe": [True] * 30 + [False] * 10, "bm25": [True] * 29 + [False] * 11}
    scores = [make_task("a/1", method, right) for method, right in rights.items()]
    report = build_report(ReportInputs(scores), test=PairedTest(200))
    assert report.tied_with_best == ("bm25",)
