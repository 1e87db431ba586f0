"""Published figures: each row of the source, and no mean where the columns are not all published."""

import pytest

from elm_jax.reporting import published, table_layout


def test_the_tasks_are_those_of_the_layout_in_its_order():
    assert [column.task for column in table_layout.task_columns(published.PAPER_TASKS)] == list(
        published.PAPER_TASKS
    )


# The means that the source prints for its rows; the one for RoE is not the mean of its cells.
@pytest.mark.parametrize(
    ("model", "mean"),
    [("T5-LM 3B", 42.99), ("T0-3B", 51.43), ("RoE-3B", 53.26), ("T0-11B", 60.77), ("GPT-3 175B", 59.0)],
)
def test_the_cells_of_a_row_average_to_its_mean(model, mean):
    (row,) = [row for row in published.published_rows(published.PAPER_TASKS) if row.model == model]
    assert len(row.cells) == 11
    assert 100 * row.macro == pytest.approx(mean, abs=0.006)


def test_some_of_the_tasks_have_the_mean_of_their_cells_alone():
    row = next(
        row for row in published.published_rows(["story_cloze", "super_glue_cb"]) if row.model == "T0-3B"
    )
    assert row.cells == pytest.approx({"story_cloze": 0.8491, "super_glue_cb": 0.4881})
    assert row.macro == pytest.approx((0.8491 + 0.4881) / 2)


def test_a_table_with_tasks_of_others_has_no_published_mean():
    assert {row.macro for row in published.published_rows(["story_cloze", "own"])} == {None}


def test_nothing_is_shown_beside_tasks_that_nobody_published():
    assert published.published_rows(["own"]) == []


def test_the_mean_that_is_printed_otherwise_is_told_where_all_tasks_stand():
    assert "53.48" in published.describe_published_rows(published.PAPER_TASKS)
    assert "53.48" not in published.describe_published_rows(["story_cloze"])
