"""Buckets: every row once, whole, in the smallest shape that holds it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_jax.errors import UserError
from elm_jax.scoring import buckets
from elm_jax.scoring.buckets import Row

TOKENS = st.integers(1, 90)
ROWS = st.lists(
    st.tuples(
        st.lists(TOKENS, min_size=1, max_size=20),
        st.lists(st.lists(TOKENS, min_size=1, max_size=5), min_size=1, max_size=7),
        st.integers(0, 4),
    ),
    max_size=12,
)


def rows_of(drawn) -> list[Row]:
    """Made in the test, since making a row checks its types by chance, which hypothesis does not allow."""
    return [Row(*fields) for fields in drawn]


def real(tokens: np.ndarray) -> list[int]:
    return [int(token) for token in tokens if token]


@settings(deadline=None)
@given(drawn=ROWS, batch_size=st.integers(1, 5))
def test_every_row_comes_back_whole_and_exactly_once(drawn, batch_size):
    rows, seen = rows_of(drawn), []
    for batch in buckets.batches(rows, batch_size=batch_size):
        assert len(batch.rows) == batch_size
        for slot, position in enumerate(batch.rows):
            if position < 0:
                assert not batch.choice_mask[slot].any()
                continue
            seen.append(int(position))
            row = rows[position]
            assert real(batch.prompts[slot]) == row.prompt
            choices = batch.answers[slot][batch.choice_mask[slot]]
            assert [real(choice) for choice in choices] == row.answers
            assert not batch.answers[slot][~batch.choice_mask[slot]].any()
            assert batch.expert_of_row[slot] == row.expert
    assert sorted(seen) == list(range(len(rows)))


@settings(deadline=None)
@given(drawn=ROWS, batch_size=st.integers(1, 5))
def test_every_row_is_in_the_bucket_of_its_own_shape(drawn, batch_size):
    rows = rows_of(drawn)
    for batch in buckets.batches(rows, batch_size=batch_size):
        shape = (batch.prompts.shape[1], *batch.answers.shape[1:])
        assert {buckets.shape_of(rows[position]) for position in batch.rows if position >= 0} == {shape}


@settings(deadline=None)
@given(drawn=ROWS)
def test_only_the_last_batch_of_a_bucket_is_filled_up(drawn):
    rows = rows_of(drawn)
    shapes = {buckets.shape_of(row) for row in rows}
    unfilled = [batch for batch in buckets.batches(rows, batch_size=3) if batch.rows[-1] < 0]
    assert len({(batch.prompts.shape, batch.answers.shape) for batch in unfilled}) == len(unfilled)
    assert len(unfilled) <= len(shapes)


@pytest.mark.parametrize(
    ("prompt", "answers", "shape"),
    [(1, [1], (4, 1, 2)), (4, [2, 1], (4, 2, 2)), (5, [1, 3, 1], (9, 5, 3)), (9, [3] * 5, (9, 5, 3))],
)
def test_a_bucket_is_the_smallest_that_holds_prompt_choices_and_longest_answer(
    monkeypatch, prompt, answers, shape
):
    monkeypatch.setattr(buckets, "LADDER", (4, 9))
    monkeypatch.setattr(buckets, "CHOICES", (1, 2, 5))
    monkeypatch.setattr(buckets, "TOKENS", (2, 3))
    assert buckets.shape_of(Row([5] * prompt, [[5] * length for length in answers])) == shape


def test_the_longest_prompt_of_the_original_and_its_79_choices_have_a_bucket():
    length, choices, tokens = buckets.shape_of(Row([5] * 768, [[5] * 256] * 79))
    assert (length >= 768, choices >= 79, tokens >= 256) == (True, True, True)


@pytest.mark.parametrize("what", ["prompt length", "number of choices", "answer length"])
def test_a_row_too_large_for_every_bucket_is_refused_before_any_is_scored(what):
    most = {
        "prompt length": buckets.LADDER[-1],
        "number of choices": buckets.CHOICES[-1],
        "answer length": buckets.TOKENS[-1],
    }
    prompt, choices, tokens = ((most[name] + 1) if name == what else 1 for name in most)
    row = Row([5] * prompt, [[5]] * (choices - 1) + [[5] * tokens])
    with pytest.raises(
        UserError, match=f"A {what} of at most {most[what]} is wanted, but one of {most[what] + 1}"
    ):
        next(buckets.batches([Row([5], [[5]]), row], batch_size=2))


def test_a_row_without_choices_is_refused():
    with pytest.raises(UserError, match="at least one answer choice a row, but a row with none came"):
        next(buckets.batches([Row([5], [])], batch_size=2))


def test_no_rows_make_no_batches():
    assert list(buckets.batches([], batch_size=4)) == []
