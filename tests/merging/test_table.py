"""Merging methods are found by name, and say of themselves what a plan needs to know."""

import pytest

from elm_jax.errors import UserError
from elm_jax.merging import average, table


def test_a_method_is_found_by_its_name():
    assert table.find("average") is average.METHOD


def test_an_unknown_method_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"No merging method named 'avarage'.*Did you mean 'average'"):
        table.find("avarage")


@pytest.mark.parametrize("name", table.METHODS)
def test_every_default_is_a_value_that_the_option_takes(name):
    for option in table.METHODS[name].options.values():
        assert option.default is None or (type(option.default) is option.type and option.fits(option.default))


def test_the_table_in_the_docstring_has_every_method():
    assert table.__doc__ is not None
    rows = [line.split()[0] for line in table.__doc__.splitlines() if line.startswith("    ")]
    assert set(table.METHODS) <= set(rows)
