"""Merging methods are found by name."""

import pytest

from elm_jax.errors import UserError
from elm_jax.merging import table
from elm_jax.merging.average import average


def test_the_average_is_found_by_its_name():
    assert table.find("average") is average


def test_an_unknown_method_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"No merging method named 'avarage'.*Did you mean 'average'"):
        table.find("avarage")
