"""Positions and shades of the charts."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elm_jax.records import Selection
from elm_jax.reporting import charts
from elm_jax.reporting.metrics import CorrectCount
from elm_jax.reporting.records import KeyMap, MapPoints
from elm_jax.reporting.summary import ReportInputs, build_report


def test_an_axis_ends_at_round_numbers_around_all_values():
    axis = charts.fit_axis([-0.021, 0.173], 100.0)
    assert axis.ticks == pytest.approx([-0.05, 0.0, 0.05, 0.1, 0.15, 0.2])
    assert (axis.at(-0.05), axis.at(0.2)) == (axis.margin, 100.0 - axis.margin)
    assert axis.at(0.075) == 50.0


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=5))
def test_every_value_lies_on_its_axis(values):
    axis = charts.fit_axis(values, 200.0)
    assert all(axis.margin - 0.01 <= axis.at(value) <= 200.0 - axis.margin + 0.01 for value in values)
    assert 2 <= len(axis.ticks) <= 8


def test_intervals_are_drawn_from_low_to_high_around_the_difference(report):
    forest = charts.forest_plot(report)
    assert len(forest["lines"]) == len(report.comparisons)
    for line, row in zip(forest["lines"], report.comparisons, strict=True):
        assert line["from"] <= line["at"] <= line["to"]
        assert (line["from"] > forest["zero"]) == (row.low > 0)
        assert line["sure"] == (row.p_holm < 0.05)


def test_spreads_put_one_point_a_prompt_on_one_axis_for_all_tasks(report):
    figures = charts.prompt_spread_plots(report)
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
        CorrectCount(task, expert, n=4, right=n)
        for expert, counts in shares.items()
        for task, n in zip(("a/1", "b/1"), counts, strict=True)
    ]
    matrix.append(CorrectCount("a/1", "z/1", n=2, right=1, seen=True))
    selections = [Selection("b/1", "roe", {"y/1": 0.7, "x/1": 0.3}, {"y/1": 5, "x/1": 2}, ("1",) * 8)]
    scores = [make_task("a/1", "base", [True])]
    families = {"x": "verbs", "y": "nouns"}
    return charts.heat_map(
        build_report(ReportInputs(scores, selections, expert_counts=matrix, families=families))
    )


def test_experts_are_grouped_by_family_and_the_unknown_ones_come_last(heat):
    assert heat["experts"] == [("y/1", "nouns"), ("x/1", "verbs"), ("z/1", charts.NO_FAMILY)]


def test_a_cell_is_in_thousandths_and_none_where_an_expert_was_not_scored(heat):
    assert heat["tasks"] == [{"name": "a", "prompts": ["1"]}, {"name": "b", "prompts": ["1"]}]
    assert heat["accuracy"] == [[500, 250], [1000, 0], [500, None]]
    ends = zip(heat["low"][0], heat["accuracy"][0], heat["high"][0], strict=True)
    assert all(low < value < high for low, value, high in ends)
    assert heat["seen"] == [(2, 0)]


def test_chosen_experts_are_marked_with_their_votes_and_the_heaviest_is_first(heat):
    assert heat["chosen"] == [(0, 1, 1, "roe: 5 of 8 votes"), (1, 1, 0, "roe: 2 of 8 votes")]


def test_a_map_puts_points_in_one_square_by_one_scale_and_names_what_was_chosen_first(make_task):
    keys = (MapPoints("x/1", (0.0, 1.0), (0.0, 0.0)), MapPoints("y/1", (0.5,), (-0.25,)))
    drawn = KeyMap("e", (0.5, 0.25), keys, (MapPoints("a", (0.0,), (0.5,)),), 30, 1)
    selections = [
        Selection(f"a/{n}", "roe", {name: 1.0}, {}, ()) for n, name in enumerate(["y/1", "x/1", "y/1"])
    ]
    scores = [make_task("a/1", "base", [True])]
    found = charts.key_map(build_report(ReportInputs(scores, selections, key_map=drawn)))
    left, right, across = charts.MAP_MARGIN, charts.MAP_WIDTH - charts.MAP_MARGIN, charts.MAP_WIDTH / 2
    side = right - left
    assert found["height"] == 2 * charts.MAP_MARGIN + 0.75 * side
    middle = round(left + 0.5 * side, 1)
    assert found["keys"] == [
        (left, middle, "x/1"),
        (right, middle, "x/1"),
        (across, round(left + 0.75 * side, 1), "y/1"),
    ]
    (panel,) = found["panels"]
    assert panel["queries"] == [(left, left)]
    assert [(name, at) for name, _, at in panel["experts"]] == [
        ("y/1", found["keys"][2][:2]),
        ("x/1", (across, middle)),
    ]
    assert panel["text"] == "a: 1 queries among 3 keys; routers chose first: 1 y/1, 2 x/1"
    assert "50.0 % and 25.0 % of" in found["caption"]
    assert "3 of 30 keys and 1 of 1 queries" in found["caption"]


def test_nothing_to_draw_gives_nothing(report):
    empty = dataclasses.replace(report, comparisons=(), matrix=(), rows=(), key_map=None)
    assert charts.key_map(empty) == {}
    assert charts.forest_plot(empty) == {}
    assert charts.heat_map(empty) == {}
    assert charts.prompt_spread_plots(empty) == []
