"""Tables of text: the right number in the right cell, what is not zero-shot apart and marked."""

import dataclasses

import pytest

from elm_jax.reporting import formatting, tables
from elm_jax.reporting.records import ChosenExperts, GeneratedResult, MethodDescription
from elm_jax.reporting.summary import PairedTest, ReportInputs, build_report


def test_methods_by_tasks_in_percent_with_chance_as_the_last_row(small):
    table = tables.methods_table(small)
    assert table.header == ("method", "a", "b", "macro mean", "micro mean")
    assert [row[:3] for row in table.rows] == [
        ("base", "12.5", "0.0"),
        ("roe", "62.5", "0.0"),
        ("hindsight:", "", ""),
        ("oracle †", "100.0", "50.0"),
        ("chance", "50.0", "25.0"),
    ]
    assert table.rows[1][3].startswith("31.3 [")
    assert table.rows[1][4] == "41.7"
    assert table.rows[4][3:] == ("37.5", "41.7")


def test_methods_picked_in_hindsight_are_marked_and_explained(small):
    assert "† picked in hindsight: oracle is for each task the expert" in tables.methods_table(small).caption
    assert "best_single" not in tables.methods_table(small).caption


def test_comparisons_are_in_points_and_the_caption_counts_them(small):
    table = tables.comparisons_table(small)
    ((methods, points, *rest),) = table.rows
    assert (methods, points) == ("roe − base", "+25.0")
    assert rest[3] == "3 : 0"
    assert table.caption.startswith("1 comparison of macro means")


def test_selections_show_what_was_merged_and_who_else_had_votes(small):
    ((task, prompt, router, expert, votes, rank, others),) = tables.selections_table(small).rows
    assert (task, prompt, router, votes, rank) == ("a", "1", "roe", "5 of 8", "–")
    assert expert == "x/1 (75 %) + y/1 (25 %)"
    assert others == "z/1 2, y/1 1"


def test_a_router_without_votes_shows_a_dash():
    for queries in (0, 8):
        row = ChosenExperts("a", "1", "uniform", "x/1", 0, queries, {"x/1": 1.0}, {}, None, None, 0)
        assert tables.format_votes(row) == "–"


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ({"a": 0.2, "b": 0.8}, "b (80 %) + a (20 %)"),
        (dict.fromkeys("ab", 0.5), "a + b (each 50 %)"),
        ({letter: number / 21 for number, letter in enumerate("abcdef", 1)}, "6 experts, f (29 %) first"),
    ],
)
def test_merged_experts_are_named_with_their_weights_and_many_are_counted(weights, text):
    row = ChosenExperts("a", "1", "roe", "", 0, 8, weights, {}, None, None, 0)
    assert tables.format_experts(row) == text


def test_few_shot_methods_stand_apart_in_every_table(make_task):
    scores = [make_task("a/1", method, [True, False]) for method in ("base", "lorahub", "oracle")]
    methods = [MethodDescription("lorahub", "lorahub", None, "few", "")]
    report = build_report(ReportInputs(scores, methods=methods), test=PairedTest(10))
    table = tables.methods_table(report)
    assert [row[0] for row in table.rows] == [
        "base",
        "few-shot:",
        "lorahub",
        "hindsight:",
        "oracle †",
        "chance",
    ]
    assert "Chosen with a few labelled rows of each task: lorahub." in table.caption
    assert tables.comparisons_table(report).rows[0][0] == "lorahub − base (few-shot)"


def test_a_task_that_was_seen_is_marked_and_never_the_best(make_task):
    scores = [make_task("a/1", "base", [True, False]), make_task("b/1", "base", [True, False])]
    scores += [make_task("a/1", "multi", [True, True]), make_task("b/1", "multi", [True, False])]
    scores[2] = dataclasses.replace(scores[2], seen=True)
    report = build_report(ReportInputs(scores), test=PairedTest(10))
    table = tables.methods_table(report)
    assert table.rows[1][:3] == ("multi", "100.0 ‡", "50.0")
    assert "‡ not zero-shot: trained on that dataset" in table.caption
    assert "(multi: a)" in table.caption
    assert tables.best_cell(report, "a") == {"base"}
    # A mean over fewer tasks is not measured against one over all.
    assert tables.best_mean(report, "macro") == {"base"}


def test_the_papers_tasks_stand_in_its_order_with_published_rows_below(make_task):
    tasks = ("own/1", "story_cloze/1", "super_glue_rte/1")
    table = tables.methods_table(
        build_report(ReportInputs([make_task(task, "base", [True]) for task in tasks]))
    )
    assert table.header == ("method", "RTE", "StoryCloze", "own", "macro mean", "micro mean")
    assert table.rows[2][0] == "published:"
    assert table.rows[4] == ("T0-3B", "60.6", "84.9", "–", "–", "–")
    assert "arXiv 2305.14045" in table.caption


def test_generated_values_are_percent_already_and_name_their_measure():
    rows = [
        GeneratedResult("base", "haiku", "p", 3, "bleu (intl)", 12.45, 10.0, 15.0, False),
        GeneratedResult("roe", "haiku", "p", 3, "bleu (intl)", 12.45, None, None, True),
    ]
    table = tables.generated_table(build_report(ReportInputs(generated=rows)))
    assert table.header == ("task", "prompt", "measure", "base", "roe")
    assert table.rows == (("haiku", "p", "bleu (intl)", "12.5 [10.0, 15.0]", "12.5 ‡"),)
    assert "not zero-shot" in table.caption


def test_the_best_is_best_among_those_without_hindsight_and_ties_share_it(small):
    assert tables.find_best({"base": 0.5, "roe": 0.50001, "oracle": 0.9}, small) == {"base", "roe"}


@pytest.mark.parametrize(
    ("value", "text"), [(0.6125, "61.3"), (0.61249, "61.2"), (0.0, "0.0"), (1.0, "100.0"), (1 / 3, "33.3")]
)
def test_percentages_round_halves_up(value, text):
    assert formatting.format_percent(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.05, "+5.0"), (-0.0005, "-0.1"), (-0.0004, "0.0"), (0.0, "0.0")]
)
def test_points_carry_their_sign_but_zero_has_none(value, text):
    assert formatting.format_points(value) == text
