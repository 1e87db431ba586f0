"""Positions and shades of the charts."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elm_jax.records import Selection
from elm_jax.reporting import charts
from elm_jax.reporting.summary import summarise


def test_an_axis_ends_at_round_numbers_around_all_values():
    axis = charts.axis_over([-0.021, 0.173], 100.0)
    assert axis.ticks == pytest.approx([-0.05, 0.0, 0.05, 0.1, 0.15, 0.2])
    assert (axis.at(-0.05), axis.at(0.2)) == (axis.margin, 100.0 - axis.margin)
    assert axis.at(0.075) == 50.0


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=5))
def test_every_value_lies_on_its_axis(values):
    axis = charts.axis_over(values, 200.0)
    assert all(axis.margin - 0.01 <= axis.at(value) <= 200.0 - axis.margin + 0.01 for value in values)
    assert 2 <= len(axis.ticks) <= 8


def test_intervals_are_drawn_from_low_to_high_around_the_difference(report):
    forest = charts.forest(report)
    assert len(forest["lines"]) == len(report.comparisons)
    for line, row in zip(forest["lines"], report.comparisons, strict=True):
        assert line["from"] <= line["at"] <= line["to"]
        assert (line["from"] > forest["zero"]) == (row["low"] > 0)
        assert line["sure"] == (row["p_holm"] < 0.05)


def test_spreads_put_one_point_a_prompt_on_one_axis_for_all_tasks(report):
    figures = charts.spreads(report)
    assert [(figure["task"], figure["prompts"]) for figure in figures][:3] == [
        ("colour", 2),
        ("opposite", 2),
        ("weekday", 3),
    ]
    assert {tuple(figure["ticks"]) for figure in figures} == {tuple(figures[0]["ticks"])}
    for figure in figures:
        for line in figure["lines"]:
            assert len(line["points"]) == figure["prompts"]
            assert line["from"] <= line["mean"] <= line["to"]


@pytest.fixture
def heat(make_task):
    shares = {"x/1": (4, 0), "y/1": (2, 1)}
    matrix = [
        make_task(task, expert, [True] * n + [False] * (4 - n))
        for expert, counts in shares.items()
        for task, n in zip(("a/1", "b/1"), counts, strict=True)
    ]
    matrix.append(make_task("a/1", "z/1", [True, False]))
    selections = [Selection("b/1", "roe", {"y/1": 0.7, "x/1": 0.3}, {"y/1": 5, "x/1": 2}, ("1",) * 8)]
    scores = [make_task("a/1", "base", [True])]
    families = {"x": "verbs", "y": "nouns"}
    report = summarise(scores, selections, {}, experts_matrix=matrix, families=families)
    cells = {
        (line["expert"], *key): cell
        for lines in charts.heat_map(report)["families"].values()
        for line in lines
        for key, cell in zip(charts.heat_map(report)["keys"], line["cells"], strict=True)
    }
    return charts.heat_map(report), cells


def test_experts_are_grouped_by_family_and_the_unknown_ones_come_last(heat):
    chart, _ = heat
    assert {family: [line["expert"] for line in lines] for family, lines in chart["families"].items()} == {
        "nouns": ["y/1"],
        "verbs": ["x/1"],
        charts.NO_FAMILY: ["z/1"],
    }
    assert list(chart["families"])[-1] == charts.NO_FAMILY


def test_shades_go_from_the_lowest_to_the_highest_of_the_map_and_of_the_task(heat):
    _, cells = heat
    assert [cells[expert, "a", "1"]["shade"] for expert in ("x/1", "y/1")] == [1.0, 0.5]
    assert [cells[expert, "b", "1"]["shade"] for expert in ("x/1", "y/1")] == [0.0, 0.25]
    assert [cells[expert, "b", "1"]["task_shade"] for expert in ("x/1", "y/1")] == [0.0, 1.0]
    assert [cells[expert, "b", "1"]["best"] for expert in ("x/1", "y/1")] == [False, True]


def test_chosen_experts_are_marked_with_their_votes_and_the_heaviest_is_first(heat):
    _, cells = heat
    assert cells["y/1", "b", "1"]["chosen"] == ["roe: 5 of 8 votes"]
    assert cells["y/1", "b", "1"]["first"]
    assert cells["x/1", "b", "1"]["chosen"] == ["roe: 2 of 8 votes"]
    assert not cells["x/1", "b", "1"]["first"]
    assert not cells["x/1", "a", "1"]["chosen"]


def test_a_pair_that_was_not_scored_has_no_shade(heat):
    _, cells = heat
    assert cells["z/1", "b", "1"]["shade"] is None
    assert cells["z/1", "b", "1"]["percent"] == "not scored"


def test_nothing_to_draw_gives_nothing(report):
    empty = dataclasses.replace(report, comparisons=(), matrix=())
    assert charts.forest(empty) == {}
    assert charts.heat_map(empty) == {}
