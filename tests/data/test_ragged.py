"""Lists end to end come back as they went in, one at a time, by slices and from the end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elm_jax.data import ragged


@given(st.lists(st.lists(st.integers(0, 2**31 - 1))))
def test_token_lists_come_back(found):
    made = ragged.of_tokens(found)
    assert [each.tolist() for each in made] == found
    assert [made[at].tolist() for at in range(len(made))] == found
    assert [each.tolist() for each in made[1:3]] == found[1:3]


@given(st.lists(st.text(alphabet=st.characters())))
def test_texts_come_back_even_with_half_a_character(found):
    made = ragged.of_texts([*found, "\ud800"])
    assert list(made) == [*found, "\ud800"]
    assert made[-1] == "\ud800"
    assert made[:2] == [*found, "\ud800"][:2]


def test_beyond_the_last_is_an_index_error():
    with pytest.raises(IndexError):
        ragged.of_texts(["a"])[1]
    with pytest.raises(IndexError):
        ragged.of_tokens([[1]])[-2]
