"""Tables of text: the right number in the right cell, and names that cannot break the table."""

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elm_jax.records import Selection
from elm_jax.reporting import tables
from elm_jax.reporting.summary import summarise


@pytest.fixture
def small(make_task):
    right = {"base": (1, 0, 0), "roe": (3, 2, 0), "oracle": (4, 4, 2)}
    scores = [
        make_task(task, method, [True] * n + [False] * (4 - n), choices=choices)
        for method, counts in right.items()
        for (task, choices), n in zip((("a/1", 2), ("a/2", 2), ("b/1", 4)), counts, strict=True)
    ]
    selection = Selection(
        "a/1", "roe", {"x/1": 0.75, "y/1": 0.25}, {"x/1": 5, "z/1": 2, "y/1": 1}, ("1",) * 8
    )
    return summarise(scores, [selection], {"seed": 3, "versions": {"jax": "0.10"}}, samples=50)


def test_methods_by_tasks_in_percent_with_chance_as_the_last_row(small):
    table = tables.methods_table(small)
    assert table.header == ("method", "a", "b", "macro mean", "micro mean")
    assert [row[:3] for row in table.rows] == [
        ("base", "12.5", "0.0"),
        ("roe", "62.5", "0.0"),
        ("oracle †", "100.0", "50.0"),
        ("chance", "50.0", "25.0"),
    ]
    assert table.rows[1][3].startswith("31.3 [")
    assert table.rows[1][4] == "41.7"
    assert table.rows[3][3:] == ("37.5", "41.7")


def test_methods_picked_in_hindsight_are_marked_and_explained(small):
    assert "† picked in hindsight: oracle is for each task the expert" in tables.methods_table(small).caption
    assert "best_single" not in tables.methods_table(small).caption


def test_comparisons_are_in_points_and_the_caption_counts_them(small):
    table = tables.comparisons_table(small)
    ((methods, points, *_),) = table.rows
    assert (methods, points) == ("roe − base", "+25.0")
    assert table.caption.startswith("1 comparison of macro means")


def test_selections_show_what_was_merged_and_who_else_had_votes(small):
    ((task, prompt, router, expert, votes, others),) = tables.selections_table(small).rows
    assert (task, prompt, router, votes) == ("a", "1", "roe", "5 of 8")
    assert expert == "x/1 (75 %) + y/1 (25 %)"
    assert others == "z/1 2, y/1 1"


def test_a_router_without_votes_shows_a_dash():
    assert tables.votes_of({"votes": 0, "queries": 0}) == "–"


def test_the_best_is_best_among_those_without_hindsight_and_ties_share_it(small):
    assert tables.best_of({"base": 0.5, "roe": 0.50001, "oracle": 0.9}, small) == {"base", "roe"}


@pytest.mark.parametrize(
    ("value", "text"), [(0.6125, "61.3"), (0.61249, "61.2"), (0.0, "0.0"), (1.0, "100.0"), (1 / 3, "33.3")]
)
def test_percentages_round_halves_up(value, text):
    assert tables.percent(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.05, "+5.0"), (-0.0005, "-0.1"), (-0.0004, "0.0"), (0.0, "0.0")]
)
def test_points_carry_their_sign_but_zero_has_none(value, text):
    assert tables.points(value) == text


def test_markdown_has_a_table_for_each_part_and_numbers_to_the_right(small):
    lines = tables.markdown(small).splitlines()
    assert [line for line in lines if line.startswith("#")] == [
        "# Report",
        "## Accuracy in percent",
        "## Paired comparisons",
        "## Chosen experts",
        "## Environment",
    ]
    assert "| --- | ---: | ---: | ---: | ---: |" in lines
    assert "| roe − base | +25.0 | " in tables.markdown(small)
    assert "| versions.jax | 0.10 |" in lines


def test_a_report_without_comparisons_or_selections_leaves_their_tables_out(small):
    lean = dataclasses.replace(small, comparisons=(), selections=())
    assert "Paired" not in tables.markdown(lean)
    assert "Chosen" not in tables.markdown(lean)


@given(st.text(alphabet="ab|\\`*<>[]()\n\t _", max_size=12))
def test_no_name_breaks_a_markdown_table(name):
    written = tables.to_markdown(tables.Table("t", ("x", "y"), ((name, "1"),)))
    row = written.splitlines()[4]
    bars = [at for at, mark in enumerate(row) if mark == "|" and not _escaped(row, at)]
    assert len(bars) == 3
    assert "<a" not in row.replace("\\<", "")
    assert not re.search(r"(?<!\\)\](?=\()", row)


def _escaped(text, at):
    before = text[:at]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 1


def test_nested_values_are_shown_under_dotted_names():
    assert tables.flat({"a": {"b": [1, 2], "c": 0.123456}, "d": None}) == [
        ("a.b", "1, 2"),
        ("a.c", "0.1235"),
        ("d", "None"),
    ]
