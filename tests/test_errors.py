"""Errors that a person can mend: what they print."""

import pytest

from elm_jax.errors import ContaminationError, UserError


@pytest.mark.parametrize("kind", [UserError, ContaminationError])
def test_what_came_is_cut_in_its_middle_where_it_is_of_any_size(kind):
    said = str(kind(f"Expected a name, got {'[' * 100_000!r}. Fix: correct it."))
    assert len(said) < 1500
    assert said.startswith("Expected a name, got '[[")
    assert said.endswith("[['. Fix: correct it.")


def test_a_path_as_long_as_a_name_may_be_is_whole():
    path = f"/{'a' * 255}/{'b' * 255}"
    assert path in str(UserError(f"Expected a run at {path!r}, got none. Fix: correct it."))
