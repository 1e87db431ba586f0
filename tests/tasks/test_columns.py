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
    made = columns.to_plain(row)
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
@given(arrays.arrays(st.sampled_from(["i4", "f8", "?", "U3"]), arrays.array_shapes(max_dims=2)))
def test_any_array_becomes_what_json_can_write(array):
    made = columns.to_plain(array)
    json.dumps(made)
    assert isinstance(made, list)


def test_a_ragged_array_becomes_a_list():
    class Ragged:  # TensorFlow's, as far as it is used
        def to_list(self):
            return [[b"a"], [b"b", b"c"]]

    assert columns.to_plain({"x": Ragged()}) == {"x": [["a"], ["b", "c"]]}


def test_bytes_that_are_no_text_stay_bytes():
    assert columns.to_plain({"image": b"\xff\xd8", "text": b"hi"}) == {"image": b"\xff\xd8", "text": "hi"}


def test_story_cloze_gets_the_templates_names_and_a_whole_number():
    (made,) = columns.convert_rows([STORY], "story_cloze_csv", file="f.csv")
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
    with pytest.raises(UserError, match=r"'f.csv', row 2: expected column 'InputSentence3', got"):
        list(columns.convert_rows([STORY, without], "story_cloze_csv", file="f.csv"))


@pytest.mark.parametrize("label", ["", "B", "1.5", None])
def test_a_label_that_is_no_whole_number_is_named(label):
    with pytest.raises(UserError, match=r"'f.csv', row 1: expected a whole number as label"):
        list(columns.convert_rows([{"label": label}], "cosmos_qa_csv", file="f.csv"))


def test_a_row_is_left_as_it_is_where_nothing_is_to_adapt():
    row = {"a": 1, "b": [1, 2]}
    assert list(columns.convert_rows([row], "unchanged", file="f")) == [row]


def adapted(adapter, row):
    (made,) = columns.convert_rows([row], adapter, file="f")
    return made


TREC = {"text": "Why?", "label_coarse": 0, "label_fine": 12, "coarse_label": 2, "fine_label": 25}  # DESC:desc


@pytest.mark.parametrize(
    ("adapter", "row", "wanted"),
    [
        ("label_from_one", {"label": "14", "title": "t"}, {"label": 13, "title": "t"}),
        ("ag_news_tfds", {"title": "a", "description": "b", "label": 3}, {"text": "a b", "label": 3}),
        ("anli_tfds", {"context": "c", "label": 1}, {"context": "c", "premise": "c", "label": 1}),
        ("winogrande_tfds", {"label": 0}, {"label": 0, "answer": "1"}),
        ("winogrande_tfds", {"label": -1}, {"label": -1, "answer": ""}),
        ("hellaswag_tfds", {"context": "c", "label": 2}, {"context": "c", "ctx": "c", "label": "2"}),
        ("hellaswag_tfds", {"context": "c", "label": -1}, {"context": "c", "ctx": "c", "label": ""}),
        ("trec_tfds", {"text": "Why?", "label-coarse": 0, "label-fine": 12}, TREC),
        ("trec_hub", {"text": "Why?", "coarse_label": 2, "fine_label": 25}, TREC),
        ("wiki_hop_hub", {"query": "q"}, {"query": "q", "question": "q"}),
        ("wiki_hop_hub", {"question": "q"}, {"question": "q"}),
        (
            "bigbench_hub",
            {"inputs": "Q", "multiple_choice_targets": ["a", "b"], "multiple_choice_scores": [0, 1]},
            {"text": "Q", "choices": ["a", "b"], "label": 1},
        ),
        (
            "bigbench_hub",
            {"inputs": "Q", "multiple_choice_targets": ["a", "b"], "multiple_choice_scores": [1, 1]},
            {"text": "Q", "choices": ["a", "b"], "label": None},
        ),
    ],
)
def test_an_adapter_makes_the_templates_columns(adapter, row, wanted):
    assert adapted(adapter, row) == wanted


def test_every_fine_class_of_trec_is_the_same_in_both_numberings():
    for fine_label, name in enumerate(columns.TREC_CLASSES["hub_fine"]):
        coarse_label = columns.TREC_CLASSES["hub_coarse"].index(name.split(":")[0])
        hub = adapted("trec_hub", {"text": "", "coarse_label": coarse_label, "fine_label": fine_label})
        old = {"text": "", "label-coarse": hub["label_coarse"], "label-fine": hub["label_fine"]}
        assert adapted("trec_tfds", old) == hub


@pytest.mark.parametrize("adapter", sorted(set(columns.ROW_CONVERTERS) - {"unchanged"}))
def test_a_row_without_the_columns_to_adapt_is_an_error_naming_one(adapter):
    with pytest.raises(UserError, match=r"'f', row 1: expected column '.+', got 'other'"):
        adapted(adapter, {"other": 1})


@pytest.mark.parametrize("fine", [50, -1])
def test_a_class_that_trec_has_not_is_an_error(fine):
    with pytest.raises(UserError, match=r"'f', row 1: expected a class of TREC, .* as fine_label"):
        adapted("trec_hub", {"text": "", "coarse_label": 0, "fine_label": fine})


def test_only_the_columns_asked_for_are_kept_as_far_as_a_row_has_them():
    rows = [{"a": 1, "b": 2}, {"a": 3}]
    assert list(columns.convert_rows(rows, "unchanged", file="f", columns=["b"])) == [{"b": 2}, {}]


def test_a_column_that_no_row_has_is_refused():
    with pytest.raises(UserError, match=r"'f': expected column 'b', got 'a'"):
        list(columns.convert_rows([{"a": 1}, {"a": 2}], "unchanged", file="f", columns=["a", "b"]))
