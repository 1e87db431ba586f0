"""Adapters make the templates' columns, in plain Python values."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from elm_jax.errors import UserError
from elm_jax.tasks import columns

STORY = {
    "InputStoryid": "s",
    **{f"InputSentence{n}": f"{n}." for n in range(1, 5)},
    "RandomFifthSentenceQuiz1": "one",
    "RandomFifthSentenceQuiz2": "two",
    "AnswerRightEnding": "2",
}


def test_numpy_bytes_and_tuples_become_plain_values():
    row = {
        "text": "Zoë".encode(),
        "label": np.int64(3),
        "share": np.float32(0.5),
        "right": np.bool_(True),
        "choices": np.array([b"a", b"b"], object),
        "nested": ({"x": np.array([[1, 2]])},),
    }
    made = columns.plain(row)
    assert made == {
        "text": "Zoë",
        "label": 3,
        "share": 0.5,
        "right": True,
        "choices": ["a", "b"],
        "nested": [{"x": [[1, 2]]}],
    }
    assert [type(value) for value in made.values()] == [str, int, float, bool, list, list]


@settings(max_examples=50, deadline=None)
@given(arrays.arrays(st.sampled_from(["i4", "f8", "?", "U3", "S3"]), arrays.array_shapes(max_dims=2)))
def test_any_array_becomes_what_json_can_write(array):
    try:
        made = columns.plain(array)
    except UserError:  # bytes that are no UTF-8
        assert array.dtype.kind == "S"
    else:
        json.dumps(made)
        assert isinstance(made, list)


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(UserError, match="should be UTF-8"):
        columns.plain(b"\xff")


def test_story_cloze_gets_the_templates_names_and_a_whole_number():
    (made,) = columns.adapt([STORY], "story_cloze_csv", label="answer_right_ending", file="f.csv")
    assert made == {
        "story_id": "s",
        "input_sentence_1": "1.",
        "input_sentence_2": "2.",
        "input_sentence_3": "3.",
        "input_sentence_4": "4.",
        "sentence_quiz1": "one",
        "sentence_quiz2": "two",
        "answer_right_ending": 2,
    }


def test_a_column_that_is_not_there_is_named_with_the_row():
    without = {name: value for name, value in STORY.items() if name != "InputSentence3"}
    with pytest.raises(UserError, match=r"'f.csv', row 2: column 'InputSentence3' is wanted, but these came"):
        columns.adapt([STORY, without], "story_cloze_csv", label=None, file="f.csv")


@pytest.mark.parametrize("label", ["", "B", "1.5", None])
def test_a_label_that_is_no_whole_number_is_named(label):
    with pytest.raises(UserError, match=r"'f.csv', row 1: label should be a whole number"):
        columns.adapt([{"label": label}], "cosmos_qa_csv", label="label", file="f.csv")


@pytest.mark.parametrize(
    ("adapter", "label"), [("cosmos_qa_csv", "-1"), ("unchanged", -1), ("unchanged", "-1")]
)
def test_unlabelled_rows_are_refused(adapter, label):
    with pytest.raises(UserError, match=r"'f.csv', row 2: the right answer is withheld \(label is -1\)"):
        columns.adapt([{"label": "0"}, {"label": label}], adapter, label="label", file="f.csv")


def test_a_row_is_left_as_it_is_where_nothing_is_to_adapt():
    row = {"a": 1, "b": [1, 2]}
    assert columns.adapt([row], "unchanged", label=None, file="f") == [row]
