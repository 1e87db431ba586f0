"""Previews: rows as the model will see them, with tokens counted and what is cut in colour."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elm_jax import cli
from elm_jax.data import preview
from elm_jax.errors import UserError
from elm_jax.tasks import own
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.tokenizers import sentencepiece


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return sentencepiece.train(
        ["one two three four no yes"], tmp_path_factory.mktemp("v") / "m", 50, kind="word", extra_ids=0
    )


def defined(rows, jinja="{{text}} ||| {{answer_choices[0]}}", choices: str | None = "no ||| yes"):
    (spec,) = own.define("mine", rows=lambda split: rows, prompts={"p": (jinja, choices)})
    return spec


def styled(line):
    return {line.plain[span.start : span.end]: str(span.style) for span in line.spans}


def test_a_row_is_its_input_its_choices_with_the_right_one_marked_and_its_target():
    (row,), count = preview.preview(defined([{"text": "one"}, {"text": "two"}]), Source(), rows=1)
    assert count == 2
    assert row.example.row_id == "mine/train/0"
    assert [line.plain for line in row.lines[:4]] == ["one", "* no", "  yes", "-> no"]


def test_without_a_vocabulary_words_are_counted():
    (row,), _ = preview.preview(defined([{"text": "one two  three"}]), Source())
    assert row.lines[-1].plain == (
        "words: input 3, target 1, choices 1, 1; tokens with --run or --vocabulary"
    )


def test_rows_that_the_template_does_not_apply_to_are_passed_over():
    jinja = "{% if text != 'one' %}{{text}} ||| a{% endif %}"
    shown, _ = preview.preview(defined([{"text": "one"}, {"text": "two"}], jinja, None), Source())
    assert [row.example.input for row in shown] == ["two"]
    with pytest.raises(UserError, match="applies to none of the 1 rows"):
        preview.preview(defined([{"text": "one"}], jinja, None), Source())


def test_with_a_vocabulary_tokens_are_counted_and_what_is_beyond_the_limit_is_red(words):
    spec = defined([{"text": "one two three four"}])
    (row,), _ = preview.preview(spec, Source(), pieces=words, lengths=Lengths(prompt=3, answer=8))
    first = row.lines[0]
    assert first.plain == "one two three four [cut after 3 tokens: the last 10 characters]"
    assert styled(first)["three four"] == preview.UNSEEN
    assert row.lines[-1].plain == "tokens: input 5 (limit 3), target 2 (limit 8), choices 2, 2"
    (row,), _ = preview.preview(spec, Source(), pieces=words, lengths=Lengths(prompt=5, answer=8))
    assert row.lines[0].plain == "one two three four"
    assert row.lines[0].spans == []


def test_what_the_template_cut_is_coloured_where_it_was_cut():
    (row,), _ = preview.preview(defined([{"text": "word " * 1000}]), Source())
    line = row.lines[0]
    assert "characters cut by the template]" in line.plain
    assert styled(line)["..."] == preview.CUT


def test_marks_stand_at_every_cut():
    assert preview.cuts("a... and b...", "a long story and b too") == [1, 10]
    assert preview.cuts("wait... what", "wait... what") == []
    assert preview.cuts("", "all of it") == []


@given(st.text(alphabet="ab. ", max_size=40), st.text(alphabet="ab. ", max_size=40))
def test_marks_never_stand_outside_the_text(text, whole):
    assert all(text[place : place + 3] == "..." for place in preview.cuts(text, whole))


@given(st.lists(st.sampled_from(["one", "two", "é", "four"]), max_size=9), st.integers(2, 6))
def test_what_is_seen_fits_and_one_character_more_does_not(words, found, most):
    text = " ".join(found)
    seen = preview.seen_length(text, words, most)
    assert len(words.encode(text[:seen])) <= most - 1
    assert seen == len(text) or len(words.encode(text[: seen + 1])) > most - 1


def test_the_command_counts_tokens_where_a_vocabulary_is_given(tmp_path, capsys):
    sentencepiece.train(["one two"], tmp_path / "m.model", 50, kind="word")
    name = "mini_size_animal/than a dog"
    asked = ["tasks", "preview", name, "--rows", "2", "--vocabulary", str(tmp_path / "m.model")]
    cli.app(asked, standalone_mode=False)
    said = capsys.readouterr().out
    assert said.count("tokens: input") == 2
    assert "2 of 288 rows of the train split." in said
