"""Digests of rows: they say which columns differ and in how many rows, and come back from JSON."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elm_jax.data import row_digests
from elm_jax.data.row_digests import describe_differences, digest_rows
from elm_jax.records import PromptedExample

TEXT = st.text(max_size=4)
FIELDS = st.lists(
    st.tuples(TEXT, TEXT, st.lists(TEXT, max_size=3).map(tuple), st.none() | st.integers(0, 2)),
    min_size=1,
    max_size=12,
)


def made(fields):
    return [PromptedExample("row", *each) for each in fields]


def rows(count=40):
    return [PromptedExample(str(n), f"Is {n} so?", "yes", ("yes", "no"), n % 2) for n in range(count)]


def change(examples, numbers, **fields):
    return [
        dataclasses.replace(row, **fields) if number in numbers else row
        for number, row in enumerate(examples)
    ]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"label": 7}, ["label of 12 of 40 rows"]),
        ({"target": "perhaps"}, ["target of 12 of 40 rows"]),
        ({"input": "Why?"}, ["input of 12 of 40 rows"]),
        ({"choices": ("yes", "never")}, ["choices of 12 of 40 rows"]),
        ({"label": 5, "target": "five"}, ["label of 12 of 40 rows", "target of 12 of 40 rows"]),
        ({"row_id": "another"}, []),
    ],
)
def test_each_column_that_differs_is_named_with_its_number_of_rows(fields, said):
    changed = change(rows(), range(5, 17), **fields)
    assert describe_differences(digest_rows(rows()), digest_rows(changed)) == said


def test_another_number_of_rows_is_said_before_anything_else():
    assert describe_differences(digest_rows(rows(40)), digest_rows(rows(41))) == ["rows (41, were 40)"]


def test_of_many_rows_some_are_compared_and_any_change_is_noticed():
    before = digest_rows(rows(5000))
    assert {len(own) for own in before.sample.values()} == {
        4 * -(-2 * 1000 // 3)
    }  # every fifth row, as base64
    every = digest_rows(change(rows(5000), range(5000), label=9))
    assert describe_differences(before, every) == [
        "label of 1,000 of 1,000 rows that were compared, of 5,000"
    ]
    (one,) = describe_differences(before, digest_rows(change(rows(5000), [7], label=9)))
    assert one.startswith("label of 0 of 1,000")


@given(FIELDS, FIELDS)
def test_digests_differ_exactly_where_rows_do(before, now):
    said = describe_differences(digest_rows(made(before)), digest_rows(made(now)))
    assert (said == []) == (before == now)


@given(FIELDS)
def test_digests_come_back_from_json(fields):
    found = digest_rows(made(fields))
    assert row_digests.from_json(json.loads(json.dumps(found.to_json()))) == found


WRITTEN = digest_rows(rows(3)).to_json()


@pytest.mark.parametrize(
    "damaged",
    [
        None,
        {"count": 3},
        WRITTEN | {"count": None},
        WRITTEN | {"count": -1},
        WRITTEN | {"columns": ["label"]},
        WRITTEN | {"columns": {"label": 3}},
        WRITTEN | {"sample": {"label": "no base64!"}},
        WRITTEN | {"sample": {"label": "AAAA"}},  # three bytes, and every row has two
    ],
)
def test_digests_of_another_form_are_refused(damaged):
    with pytest.raises(ValueError, match=r"RowDigests|base64|two bytes"):
        row_digests.from_json(damaged)
