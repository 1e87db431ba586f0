"""Tables of the terminal: they fit, names are whole, and nothing is lost but where it is said."""

import pytest

from elm_jax.cli import output
from elm_jax.reporting.tables import Table

NAMES = ("mini_opposite_swap/which is the opposite", "mini_calendar_next/time is over")
WIDE = Table(
    "Wide",
    ("expert", "kind", "experts with the most votes", "owner", "parameters", "accuracy"),
    tuple((name, "bottleneck", ", ".join(NAMES), "somebody", "1,234,567", "65.7 of 12") for name in NAMES),
    "What it is.",
)


def lines(table, width, **options):
    return list(output.table_lines(table, width, **options))


def test_a_table_that_fits_stands_in_one_block_with_numbers_to_the_right():
    table = Table("Two", ("name", "n"), (("a", "1"), ("bcdef", "1,000")))
    assert lines(table, 40) == ["Two", "", "name       n", "─────  ─────", "a          1", "bcdef  1,000"]


@pytest.mark.parametrize("width", [60, 90, 160])
def test_no_line_is_wider_than_the_terminal_and_no_name_is_cut(width):
    said = lines(WIDE, width)
    assert max(map(len, said)) <= width or width == 60  # the first two columns are wider together
    for name in NAMES:
        assert any(name in line for line in said)
    for word in (*WIDE.header, "bottleneck", "somebody", "1,234,567", "65.7 of 12"):
        assert any(word in line for line in said)


def test_experts_that_were_merged_stand_on_lines_of_their_own_where_they_are_too_wide():
    table = Table("", ("task", "chosen"), (("a", f"{NAMES[0]} + {NAMES[1]} (each 50 %)"),))
    *_, first, second = lines(table, 60)
    assert (first, second) == (f"a     {NAMES[0]} +", f"      {NAMES[1]} (each 50 %)")


def test_a_wide_terminal_has_it_all_side_by_side():
    assert any(all(word in line for word in WIDE.rows[0]) for line in lines(WIDE, 200))


def test_rows_that_their_first_cell_does_not_tell_apart_are_numbered_in_every_part():
    rows = (("task", "good", "a" * 30), ("task", "fine", "b" * 30))
    said = lines(Table("", ("task", "prompt", "expert"), rows), 40)
    assert said[2:6] == ["   task  prompt", "─  ────  ──────", "1  task  good", "2  task  fine"]
    assert said[-2:] == [f"1  {'a' * 30}", f"2  {'b' * 30}"]


def test_a_table_that_may_shrink_says_which_columns_it_leaves_out():
    said = lines(WIDE, 80, may_shrink=True)
    assert max(map(len, said)) <= 80
    assert said[-1] == "What it is. Left out in 80 columns: experts with the most votes, owner."
    assert any("bottleneck" in line and "65.7 of 12" in line for line in said)


def test_wide_characters_and_controls_keep_the_columns():
    table = Table("", ("name", "n"), (("評価", "1"), ("a\x1b", "2")))
    *_, first, second = lines(table, 40)
    assert first == "評価     1"  # two columns each
    assert second == r"a\u001b  2"


def test_an_entry_is_wrapped_beside_its_name(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    output.print_entry("ties", "elects a sign for every parameter")
    assert capsys.readouterr().out.splitlines() == [
        "ties               elects a",
        "                   sign for",
        "                   every",
        "                   parameter",
    ]
