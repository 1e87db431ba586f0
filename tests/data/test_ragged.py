"""Ragged arrays return the lists and texts that they were packed from."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elm_jax.data import ragged


@given(st.lists(st.lists(st.integers(0, 2**31 - 1))))
def test_packed_token_lists_are_read_back(found):
    made = ragged.pack_tokens(found)
    assert [each.tolist() for each in made] == found
    assert [made[at].tolist() for at in range(len(made))] == found
    assert [each.tolist() for each in made[1:3]] == found[1:3]


@given(st.lists(st.text(alphabet=st.characters())))
def test_packed_texts_are_read_back_even_with_half_a_surrogate_pair(found):
    made = ragged.pack_texts([*found, "\ud800"])
    assert list(made) == [*found, "\ud800"]
    assert made[-1] == "\ud800"
    assert made[:2] == [*found, "\ud800"][:2]


def test_an_index_beyond_the_last_is_an_index_error():
    with pytest.raises(IndexError):
        ragged.pack_texts(["a"])[1]
    with pytest.raises(IndexError):
        ragged.pack_tokens([[1]])[-2]


@given(st.lists(st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=4), max_size=4))
def test_joined_tokens_are_the_lists_one_after_the_other(parts):
    joined = ragged.JoinedTokens([ragged.pack_tokens(part) for part in parts])
    flat = [row for part in parts for row in part]
    assert [row.tolist() for row in joined] == flat
    assert len(joined) == len(flat)
    assert [joined[at].tolist() for at in range(-len(flat), len(flat))] == [*flat, *flat]
    with pytest.raises(IndexError):
        joined[len(flat)]
