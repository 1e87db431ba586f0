"""The layout: the paper's columns and the blocks of methods."""

import pytest

from elm_jax.reporting import table_layout
from elm_jax.tasks.specs import task_specs


@pytest.mark.parametrize("group", ["unseen", "bigbench"])
def test_every_evaluation_task_of_the_catalogue_has_a_column(group):
    datasets = {spec.dataset for spec in task_specs() if spec.group == group}
    assert datasets <= {dataset for names in table_layout.PAPER_GROUPS.values() for dataset in names}


def test_the_papers_columns_come_first_and_others_keep_their_order():
    found = table_layout.task_columns(["zebra", "winogrande", "ant", "super_glue_cb", "zebra"])
    assert [(column.task, column.group) for column in found] == [
        ("super_glue_cb", "Natural language inference"),
        ("winogrande", "Coreference"),
        ("zebra", "Other tasks"),
        ("ant", "Other tasks"),
    ]


def test_tasks_that_are_none_of_the_papers_have_no_headings():
    assert {column.group for column in table_layout.task_columns(["ant", "zebra"])} == {""}


def test_what_nobody_describes_is_known_by_its_name():
    oracle, own = table_layout.describe_methods(["oracle", "mine"], [])[::-1]
    assert (oracle.labels, own.labels) == ("hindsight", "none")
    assert (bool(oracle.note), own.note) == (True, "")
