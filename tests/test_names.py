"""Names survive the file system, and a misspelt one is answered with the nearest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elm_jax import names
from elm_jax.errors import UserError

EXPERTS = ["cosmos_qa/only_question_answer", "cosmos_qa/no_prompt_id", "imdb/Sentiment with choices "]


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=18))
def test_a_directory_name_turns_back_into_the_name(name):
    quoted = names.directory_name(name)
    assert names.from_directory_name(quoted) == name
    assert "/" not in quoted
    assert not quoted.startswith(".")
    assert "~" not in quoted


def test_a_name_that_a_file_system_cannot_take_with_its_endings_is_refused():
    assert names.directory_name("a" * 217) == "a" * 217
    for long in ("a" * 218, "é" * 37, "a\ud800"):
        with pytest.raises(UserError):
            names.directory_name(long)
        assert not names.is_directory_name(long)


def test_an_id_splits_at_its_first_slash_only():
    identifier = names.task_id("super_glue_cb", "always/sometimes/never")
    assert names.split_id(identifier) == ("super_glue_cb", "always/sometimes/never")


@pytest.mark.parametrize("broken", ["", "cosmos_qa", "/prompt", "cosmos_qa/"])
def test_an_id_without_both_parts_is_refused(broken):
    with pytest.raises(UserError, match="dataset/prompt"):
        names.split_id(broken)


def test_a_trailing_space_belongs_to_the_name():
    with pytest.raises(UserError, match="'imdb/Sentiment with choices '"):
        names.resolve("imdb/Sentiment with choices", EXPERTS, kind="expert", where="the library")


def test_where_no_name_is_near_a_few_are_all_told_and_many_are_counted():
    with pytest.raises(UserError, match=r"\(2 known\)\. There are red, blue\."):
        names.resolve("xyz", ["red", "blue"], kind="colour", where="the box")
    with pytest.raises(UserError, match=r"\(21 known\)\.$"):
        names.resolve("xyz", [f"c{number}" for number in range(21)], kind="colour", where="the box")


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'cosmos_qa/only_question_answer'"):
        names.resolve("cosmos_qa/only_question_anwser", EXPERTS, kind="expert", where="the library")
