"""Previews show rows as the model will see them, with tokens counted and what is cut in colour."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elm_jax import cli
from elm_jax.data import preview
from elm_jax.errors import UserError
from elm_jax.prompting.render import render
from elm_jax.prompting.templates import Template
from elm_jax.records import RowCounts
from elm_jax.tasks import raw_rows, user_tasks
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


def previewed(*arguments, **how):
    made = preview.preview_task(*arguments, **how)
    return list(made.rows), made.count


def styled(line):
    return {line.plain[span.start : span.end]: str(span.style) for span in line.spans}


def test_a_row_shows_its_input_its_choices_with_the_right_one_marked_and_its_target():
    (row,), count = previewed(defined([{"text": "one"}, {"text": "two"}]), Source(), rows=1)
    assert count == 2
    assert row.example.row_id == "mine/train/0"
    assert [line.plain for line in row.lines[:4]] == ["one", "* no", "  yes", "-> no"]


def test_without_a_tokenizer_words_are_counted():
    (row,), _ = previewed(defined([{"text": "one two  three"}]), Source())
    assert row.lines[-1].plain == (
        "words: input 3, target 1, choices 1, 1; tokens with --run or --vocabulary"
    )


def test_rows_that_the_template_does_not_apply_to_are_skipped():
    jinja = "{% if text != 'one' %}{{text}} ||| a{% endif %}"
    shown, _ = previewed(defined([{"text": "one"}, {"text": "two"}], jinja, None), Source())
    assert [row.example.input for row in shown] == ["two"]
    with pytest.raises(UserError, match=r"'mine/p' .* 1 rows of the train split"):
        previewed(defined([{"text": "one"}], jinja, None), Source())


def test_with_a_tokenizer_tokens_are_counted_and_text_beyond_the_limit_is_red(words):
    spec = defined([{"text": "one two three four"}])
    (row,), _ = previewed(spec, Source(), tokenizer=words, lengths=Lengths(prompt=3, answer=8))
    first = row.lines[0]
    assert first.plain == "one two three four [cut after 3 tokens: the last 10 characters]"
    assert styled(first)["three four"] == preview.TOKEN_CUT_STYLE
    assert row.lines[-1].plain == "tokens: input 5 (limit 3), target 2 (limit 8), choices 2, 2"
    (row,), _ = previewed(spec, Source(), tokenizer=words, lengths=Lengths(prompt=5, answer=8))
    assert row.lines[0].plain == "one two three four"
    assert row.lines[0].spans == []


def test_cuts_of_the_template_are_coloured():
    (row,), _ = previewed(defined([{"text": "word " * 1000}]), Source())
    line = row.lines[0]
    assert "characters cut by the template]" in line.plain
    assert styled(line)["..."] == preview.TEMPLATE_CUT_STYLE


def test_a_limit_that_changes_what_a_template_computes_is_shown_beside_the_text_without_it():
    template = Template("p", "id", "{{a}} ||| {{ a * b }}", dataset="mine")
    row = {"a": 3, "b": 3}
    example, whole = (render([row], template, truncate=most)[0] for most in (2048, None))
    assert (example.target, whole.target) == ("333", "9")
    (line,) = preview.mark_text(example.target, whole.target, None, 8)
    assert line.plain == "333 [without the limit of characters: '9']"


def test_rows_that_cannot_be_used_are_counted_and_refused_if_the_source_says_so():
    spec = defined([{"text": None}, {"text": "one"}, {"text": "two"}, {"text": None}])
    made = preview.preview_task(spec, Source(), rows=1)
    assert made.counts == RowCounts(2, 1, {"missing value": 1})
    with pytest.raises(UserError, match=r"1 missing value.*mine/train/0"):
        preview.preview_task(spec, Source(on_bad_row="refuse"), rows=1)
    with pytest.raises(UserError, match=r"none among the 1 rows.*mine/train/0.*expected a value to write"):
        preview.preview_task(defined([{"text": None}]), Source())


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
    assert len(words.encode(text[:seen])) <= most
    assert seen == len(text) or len(words.encode(text[: seen + 1])) > most


def test_what_the_model_sees_follows_where_it_differs_from_the_text(words):
    spec = defined([{"text": "one zwei\ntwo"}])
    (row,), _ = previewed(spec, Source(), tokenizer=words)
    assert styled(row.lines[0])["zwei"] == preview.UNKNOWN_STYLE
    assert preview.FOLDED_STYLE in styled(row.lines[0])["\n"]
    assert row.lines[1].plain == f"   the model sees: {words.decode(words.encode('one zwei two'))}"
    assert "⁇" in row.lines[1].plain
    (row,), _ = previewed(defined([{"text": "one two"}]), Source(), tokenizer=words)
    assert not any("the model sees" in line.plain for line in row.lines)


def test_choices_that_are_no_choice_are_marked(words):
    def shown(choices, **how):
        (row,), _ = previewed(defined([{"text": "one"}], choices=choices), Source(), **how)
        return [line.plain[2:] for line in row.lines if line.plain[:2] in ("* ", "  ")][
            : choices.count("|||") + 1
        ]

    assert shown("no") == ["no [the only choice]"]
    assert shown("no ||| yes ||| no") == ["no", "yes", "no [choice 1 again]"]
    assert shown("eins ||| zwei") == ["eins", "zwei"]
    spec = defined([{"text": "one"}], choices="eins ||| zwei")
    (row,), _ = previewed(spec, Source(), tokenizer=words)
    assert "  zwei [the same tokens as choice 1]" in [line.plain for line in row.lines]


def test_letters_in_two_parts_are_marked():
    (row,), _ = previewed(defined([{"text": "cafe\u0301 caf\u00e9"}]), Source())
    assert styled(row.lines[0]) == {"e\u0301": preview.COMBINING_MARK_STYLE}


def test_no_more_rows_are_read_than_are_shown(monkeypatch):
    read = []
    open_rows = raw_rows.open_rows

    def counted(*arguments):
        rows = open_rows(*arguments)

        def read_some(start, stop):
            for row in rows.read(start, stop):
                read.append(row["row_id"])
                yield row

        return replace(rows, read=read_some)

    monkeypatch.setattr(raw_rows, "open_rows", counted)
    _, count = previewed(defined([{"text": f"{at}"} for at in range(50)]), Source(), rows=2)
    assert (read, count) == (["mine/train/0", "mine/train/1"], 50)


def test_the_command_prints_rows_as_json(capsys):
    asked = ["tasks", "preview", "mini_size_animal/than a dog", "--rows", "2", "--json"]
    cli.app(asked, standalone_mode=False)
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 2
    for row in rows:
        assert set(row) == {"input", "target", "choices", "label"}
        assert row["choices"][row["label"]] == row["target"]


def test_the_command_counts_tokens_if_a_vocabulary_is_given(tmp_path, capsys):
    sentencepiece.train(["one two"], tmp_path / "m.model", 50, kind="word")
    name = "mini_size_animal/than a dog"
    asked = ["tasks", "preview", name, "--rows", "2", "--vocabulary", str(tmp_path / "m.model")]
    cli.app(asked, standalone_mode=False)
    said = capsys.readouterr().out
    assert said.count("tokens: input") == 2
    assert "2 of 288 rows of the train split." in said
