"""Documents: every table in Markdown, and names that cannot break one."""

import dataclasses
import re

from hypothesis import given
from hypothesis import strategies as st

from elm_jax.reporting import documents, tables
from elm_jax.reporting.summary import PairedTest, ReportInputs, build_report


def test_markdown_has_a_table_for_each_part_and_numbers_to_the_right(small):
    lines = documents.render_markdown(small).splitlines()
    assert [line for line in lines if line.startswith("#")] == [
        "# Report",
        "## Accuracy in percent",
        "## Over prompts",
        "## Paired comparisons",
        "## Chosen experts",
        "## Environment",
    ]
    assert "| --- | ---: | ---: | ---: | ---: |" in lines
    assert "| roe − base | +25.0 | " in documents.render_markdown(small)
    assert "| versions.jax | 0.10 |" in lines


def test_the_median_over_prompts_stands_beside_their_mean_where_there_are_several(make_task):
    right = {"a/1": 0, "a/2": 1, "a/3": 4, "b/1": 2}  # of four rows
    scores = [make_task(name, "base", [True] * n + [False] * (4 - n)) for name, n in right.items()]
    table = tables.prompts_table(build_report(ReportInputs(scores, [], {}), test=PairedTest(50)))
    assert table.rows == (("a", "base", "3", "41.7", "25.0", "0.0", "100.0"),)


def test_a_report_without_comparisons_or_selections_leaves_their_tables_out(small):
    lean = dataclasses.replace(small, comparisons=(), selections=())
    assert "Paired" not in documents.render_markdown(lean)
    assert "Chosen" not in documents.render_markdown(lean)


@given(st.text(alphabet="ab|\\`*<>[]()\n\t _", max_size=12))
def test_no_name_breaks_a_markdown_table(name):
    written = documents.table_to_markdown(tables.Table("t", ("x", "y"), ((name, "1"),)))
    row = written.splitlines()[4]
    bars = [at for at, mark in enumerate(row) if mark == "|" and not _escaped(row, at)]
    assert len(bars) == 3
    assert "<a" not in row.replace("\\<", "")
    assert not re.search(r"(?<!\\)\](?=\()", row)


def _escaped(text, at):
    before = text[:at]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 1


def test_nested_values_are_shown_under_dotted_names():
    assert documents.flatten_values({"a": {"b": [1, 2], "c": 0.123456}, "d": None}) == [
        ("a.b", "1, 2"),
        ("a.c", "0.1235"),
        ("d", "None"),
    ]


def test_every_table_of_a_limited_report_says_so(small):
    limited = dataclasses.replace(small, environment={**small.environment, "limit": 6})
    made = (getattr(tables, name) for name in dir(tables) if name.endswith("_table"))
    for table in [make(limited) for make in made]:
        assert "Limited to 6 rows" in table.caption, table.title
        assert "Limited" not in table.title
    assert "Limited" not in "".join(table.caption for table in documents.list_tables(small).values())
