"""Merge methods are found by name, and their registration says what a plan needs to know."""

import pytest

from elm_jax.errors import UserError
from elm_jax.merging import average, table


def test_a_method_is_found_by_its_name():
    assert table.find_merge("average").combine is average.average


def test_an_unknown_method_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"'avarage'.*'average'"):
        table.find_merge("avarage")


@pytest.mark.parametrize("name", table.MERGES)
def test_every_default_is_a_value_that_the_option_takes(name):
    for option in table.MERGES[name].options.values():
        is_plain = type(option.default) is option.type and option.is_valid(option.default)
        assert option.default is None or is_plain


@pytest.mark.parametrize("name", table.MERGES)
def test_every_method_and_option_has_a_description(name):
    method = table.MERGES[name]
    assert all([method.description, *(option.description for option in method.options.values())])


def test_the_table_in_the_docstring_has_every_method():
    assert table.__doc__ is not None
    rows = [line.split()[0] for line in table.__doc__.splitlines() if line.startswith("    ")]
    assert {module.__name__.rpartition(".")[2] for module in table.BUILT_IN} == set(table.MERGES) <= set(rows)
