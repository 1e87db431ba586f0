"""Previews show rows as the model will see them, with tokens counted and what is cut in colour."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elm_jax import cli
from elm_jax.data import preview
from elm_jax.errors import UserError
from elm_jax.tasks import user_tasks
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.tokenizers import sentencepiece


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return sentencepiece.train(
        ["one two three four no yes"], tmp_path_factory.mktemp("v") / "m", 50, kind="word", extra_ids=0
    )


def defined(rows, jinja="{{text}} ||| {{answer_choices[0]}}", choices: str | None = "no ||| yes"):
    (spec,) = user_tasks.define_task("mine", rows=lambda split: rows, prompts={"p": (jinja, choices)})
    return spec


def styled(line):
    return {line.plain[span.start : span.end]: str(span.style) for span in line.spans}


def test_a_row_shows_its_input_its_choices_with_the_right_one_marked_and_its_target():
    (row,), count = preview.preview_task(defined([{"text": "one"}, {"text": "two"}]), Source(), rows=1)
    assert count == 2
    assert row.example.row_id == "mine/train/0"
    assert [line.plain for line in row.lines[:4]] == ["one", "* no", "  yes", "-> no"]


def test_without_a_tokenizer_words_are_counted():
    (row,), _ = preview.preview_task(defined([{"text": "one two  three"}]), Source())
    assert row.lines[-1].plain == (
        "words: input 3, target 1, choices 1, 1; tokens with --run or --vocabulary"
    )


def test_rows_that_the_template_does_not_apply_to_are_skipped():
    jinja = "{% if text != 'one' %}{{text}} ||| a{% endif %}"
    shown, _ = preview.preview_task(defined([{"text": "one"}, {"text": "two"}], jinja, None), Source())
    assert [row.example.input for row in shown] == ["two"]
    with pytest.raises(UserError, match=r"'mine/p' .* 1 rows of the train split"):
        preview.preview_task(defined([{"text": "one"}], jinja, None), Source())


def test_with_a_tokenizer_tokens_are_counted_and_text_beyond_the_limit_is_red(words):
    spec = defined([{"text": "one two three four"}])
    (row,), _ = preview.preview_task(spec, Source(), tokenizer=words, lengths=Lengths(prompt=3, answer=8))
    first = row.lines[0]
    assert first.plain == "one two three four [cut after 3 tokens: the last 10 characters]"
    assert styled(first)["three four"] == preview.UNSEEN
    assert row.lines[-1].plain == "tokens: input 5 (limit 3), target 2 (limit 8), choices 2, 2"
    (row,), _ = preview.preview_task(spec, Source(), tokenizer=words, lengths=Lengths(prompt=5, answer=8))
    assert row.lines[0].plain == "one two three four"
    assert row.lines[0].spans == []


def test_cuts_of_the_template_are_coloured():
    (row,), _ = preview.preview_task(defined([{"text": "word " * 1000}]), Source())
    line = row.lines[0]
    assert "characters cut by the template]" in line.plain
    assert styled(line)["..."] == preview.CUT


def test_every_cut_is_found():
    assert preview.find_cuts("a... and b...", "a long story and b too") == [1, 10]
    assert preview.find_cuts("wait... what", "wait... what") == []
    assert preview.find_cuts("", "all of it") == []


@given(st.text(alphabet="ab. ", max_size=40), st.text(alphabet="ab. ", max_size=40))
def test_cuts_are_always_three_dots_of_the_text(text, whole):
    assert all(text[place : place + 3] == "..." for place in preview.find_cuts(text, whole))


@given(st.lists(st.sampled_from(["one", "two", "é", "four"]), max_size=9), st.integers(2, 6))
def test_the_seen_characters_fit_and_one_more_does_not(words, found, most):
    text = " ".join(found)
    seen = preview.count_seen_characters(text, words, most)
    assert len(words.encode(text[:seen])) <= most - 1
    assert seen == len(text) or len(words.encode(text[: seen + 1])) > most - 1


def test_the_command_counts_tokens_if_a_vocabulary_is_given(tmp_path, capsys):
    sentencepiece.train(["one two"], tmp_path / "m.model", 50, kind="word")
    name = "mini_size_animal/than a dog"
    asked = ["tasks", "preview", name, "--rows", "2", "--vocabulary", str(tmp_path / "m.model")]
    cli.app(asked, standalone_mode=False)
    said = capsys.readouterr().out
    assert said.count("tokens: input") == 2
    assert "2 of 288 rows of the train split." in said
