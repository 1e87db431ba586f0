"""Tokenised rows are read back as they were rendered, cut but ended, and never for another key."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from elm_jax import storage
from elm_jax.data import prepared_files, row_digests, tokenized_rows
from elm_jax.errors import UserError
from elm_jax.records import PromptedExample
from elm_jax.tasks.data_source import Lengths
from elm_jax.tokenizers import sentencepiece

WORDS = [chr(ord("a") + index) * 2 for index in range(20)]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return sentencepiece.train(
        [" ".join(WORDS)], tmp_path_factory.mktemp("v") / "m.model", 50, kind="word", extra_ids=0
    )


def example(row, text, choices=("bb", "cc dd"), label: int | None = 1):
    target = choices[label] if choices else "dd ee"
    return PromptedExample(f"row-{row}", text, target, tuple(choices), label)


def test_every_list_ends_with_end_of_sequence_and_choices_belong_to_their_row(words):
    made = tokenized_rows.tokenize_examples(
        [example(0, "aa bb cc"), example(1, "aa", ("bb", "cc", "dd"), 0), example(2, "", (), None)],
        words,
        Lengths(8, 4),
    )
    a, b, c, d, e = (words.encode(word)[0] for word in WORDS[:5])
    assert [row.tolist() for row in made.inputs] == [[a, b, c, 1], [a, 1], [1]]
    assert [row.tolist() for row in made.targets] == [[c, d, 1], [b, 1], [d, e, 1]]
    assert [row.tolist() for row in tokenized_rows.get_choices(made, 0)] == [[b, 1], [c, d, 1]]
    assert [row.tolist() for row in tokenized_rows.get_choices(made, 1)] == [[b, 1], [c, 1], [d, 1]]
    assert tokenized_rows.get_choices(made, 2) == []
    assert made.labels.tolist() == [1, 0, -1]
    assert made.row_ids == ("row-0", "row-1", "row-2")
    assert made.texts == ("aa bb cc", "aa", "")


def test_rows_without_choices_are_read_back_from_files_of_earlier_versions_too(words, tmp_path):
    rows = tokenized_rows.tokenize_examples([example(0, "aa", (), None)] * 2, words, Lengths(8, 4))
    for texts in ((), ("", "")):  # earlier files have an empty text for every row
        prepared_files.save(tmp_path / "x", replace(rows, choice_texts=texts), "key")
        back = tokenized_rows.StoredExamples(prepared_files.load(tmp_path / "x"), "key")
        assert [each.choices for each in back] == [(), ()]


def test_accepted_answers_but_the_first_are_paired_with_the_input_of_their_row(words):
    several = PromptedExample("x", "aa bb", "cc", accepted=("cc", "dd", "ee aa bb cc"))
    rows = tokenized_rows.tokenize_examples([example(0, "aa"), several], words, Lengths(8, 4))
    a, b, d, e = (words.encode(word)[0] for word in ("aa", "bb", "dd", "ee"))
    inputs, targets = tokenized_rows.pair_extra_gold_answers(rows, words, Lengths(8, 4))
    assert [row.tolist() for row in inputs] == [[a, b, 1], [a, b, 1]]
    assert [row.tolist() for row in targets] == [[d, 1], [e, a, b, 1]]
    none, _ = tokenized_rows.pair_extra_gold_answers(replace(rows, accepted=()), words, Lengths(8, 4))
    assert len(none) == 0


def test_long_lists_are_cut_and_end_with_end_of_sequence(words):
    made = tokenized_rows.tokenize_examples(
        [example(0, "aa bb cc dd", ("aa bb cc", "dd"), 0)], words, Lengths(3, 2)
    )
    a, b, d = (words.encode(word)[0] for word in ("aa", "bb", "dd"))
    assert made.inputs[0].tolist() == [a, b, 1]
    assert made.targets[0].tolist() == [a, 1]
    assert [row.tolist() for row in tokenized_rows.get_choices(made, 0)] == [[a, 1], [d, 1]]


def test_only_inputs_may_lack_end_of_sequence(words):
    made = tokenized_rows.tokenize_examples(
        [example(0, "aa bb cc")], replace(words, input_eos=False), Lengths(3, 4)
    )
    assert made.inputs[0].tolist() == words.encode("aa bb cc")
    assert made.targets[0][-1] == sentencepiece.EOS


def test_rows_are_read_by_index_slice_and_from_the_end(words):
    made = tokenized_rows.tokenize_examples(
        [example(row, " ".join(WORDS[:row])) for row in range(4)], words, Lengths(9, 4)
    )
    assert len(made.inputs) == 4
    assert made.inputs[-1].tolist() == made.inputs[3].tolist() == [*words.encode("aa bb cc"), 1]
    assert [row.tolist() for row in made.inputs[1:3]] == [made.inputs[1].tolist(), made.inputs[2].tolist()]
    with pytest.raises(IndexError):
        made.inputs[4]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from([*WORDS, "é", "\n", '"']), max_size=12).map(" ".join),
            st.lists(st.sampled_from(WORDS), max_size=4),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_saved_rows_are_read_back_with_their_texts(words, tmp_path_factory, rows):
    found = [
        example(at, text, choices, len(choices) - 1 if choices else None)
        for at, (text, choices) in enumerate(rows)
    ]
    made = tokenized_rows.tokenize_examples(found, words, Lengths(6, 3))
    file = tmp_path_factory.mktemp("p") / "x.safetensors"
    prepared_files.save(file, made, "f" * 16)
    back = prepared_files.load(file, "f" * 16)
    assert list(tokenized_rows.StoredExamples(back, "f" * 16)) == found
    for name in ("inputs", "targets", "choices"):
        ours, theirs = getattr(made, name), getattr(back, name)
        np.testing.assert_array_equal(ours.tokens, theirs.tokens)
        np.testing.assert_array_equal(ours.offsets, theirs.offsets)
        assert theirs.tokens.dtype == np.int32
    np.testing.assert_array_equal(made.labels, back.labels)
    np.testing.assert_array_equal(made.choice_starts, back.choice_starts)


def test_a_stale_missing_or_foreign_file_is_refused(words, tmp_path):
    file = tmp_path / "x.safetensors"
    made = tokenized_rows.tokenize_examples([example(0, "aa")], words, Lengths(4, 4))
    assert not prepared_files.is_current(file, "a" * 16)
    prepared_files.save(file, made, "a" * 16)
    assert prepared_files.is_current(file, "a" * 16)
    assert not prepared_files.is_current(file, "b" * 16)
    assert list(prepared_files.load(file).row_ids) == ["row-0"]
    with pytest.raises(UserError, match=r"cache key b{16} .* got a{16}"):
        prepared_files.load(file, "b" * 16)
    with pytest.raises(UserError, match=r"none\.safetensors', got no file"):
        prepared_files.load(tmp_path / "none.safetensors")
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(UserError, match="whole safetensors file"):
        prepared_files.load(file)
    prepared_files.storage.write_arrays(file, {"weights": np.zeros(3)})
    with pytest.raises(UserError, match="another kind"):
        prepared_files.load(file)


def test_the_cache_key_depends_on_data_template_options_tokenizer_and_lengths(words, tmp_path):
    other = sentencepiece.train(["aa bb"], tmp_path / "m", 50, kind="word", extra_ids=0)
    data, template = {"file": "reviews.jsonl", "bytes": "0123"}, {"jinja": "{{text}}"}
    rendered = [
        prepared_files.make_rendering_key(data, template, {"seed": 1}),
        prepared_files.make_rendering_key({**data, "bytes": "4567"}, template, {"seed": 1}),
        prepared_files.make_rendering_key(data, {"jinja": "{{text}} ?"}, {"seed": 1}),
        prepared_files.make_rendering_key(data, template, {"seed": 2}),
    ]
    made = [prepared_files.make_cache_key(each, words, Lengths(4, 4)) for each in rendered]
    made += [
        prepared_files.make_cache_key(rendered[0], other, Lengths(4, 4)),
        prepared_files.make_cache_key(rendered[0], words, Lengths(5, 4)),
        prepared_files.make_cache_key(rendered[0], words, Lengths(4, 5)),
        prepared_files.make_cache_key(rendered[0], replace(words, input_eos=False), Lengths(4, 4)),
    ]
    assert len(set(made)) == 8
    assert all(each.startswith(rendered[0] + "-") for each in [made[0], *made[4:]])
    assert made[0] == prepared_files.make_cache_key(
        prepared_files.make_rendering_key(data, template, {"seed": 1}), words, Lengths(4, 4)
    )


def test_a_row_whose_target_is_outside_its_choices_has_no_label(words):
    outside = PromptedExample("row-9", "aa", "cc", ("bb", "dd"), None)
    made = tokenized_rows.tokenize_examples([outside], words, Lengths(4, 4))
    assert made.labels.tolist() == [-1]
    assert len(tokenized_rows.get_choices(made, 0)) == 2


def test_missing_examples_short_lengths_and_wrong_labels_are_errors(words):
    with pytest.raises(UserError, match="got none"):
        tokenized_rows.tokenize_examples([], words, Lengths(4, 4))
    with pytest.raises(UserError, match="answer=1"):
        tokenized_rows.tokenize_examples([example(0, "aa")], words, Lengths(4, 1))
    for label in (-1, 2):
        bad = PromptedExample("row-9", "aa", "bb", ("bb", "cc"), label)
        with pytest.raises(UserError, match=f"'row-9' .* 2 choices.* got {label}"):
            tokenized_rows.tokenize_examples([bad], words, Lengths(4, 4))


def test_rows_are_padded_at_the_end_and_a_longer_row_is_refused():
    rows = [np.array([5, 6, 1]), np.array([], np.int64), np.array([1])]
    padded = tokenized_rows.pad(rows, 4)
    assert padded.dtype == np.int32
    assert padded.tolist() == [[5, 6, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert tokenized_rows.pad([], 4).shape == (0, 4)
    with pytest.raises(UserError, match="at most 2 tokens, got 3 in row 0"):
        tokenized_rows.pad(rows, 2)


def test_a_local_file_is_memory_mapped(words, tmp_path):
    prepared_files.save(
        tmp_path / "x",
        tokenized_rows.tokenize_examples([example(0, "aa")], words, Lengths(4, 4)),
        "a" * 16,
    )
    back = prepared_files.load(tmp_path / "x")
    owner = back.inputs.tokens
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    assert isinstance(owner, np.memmap)


@given(st.integers(0, 900))
def test_a_truncated_file_is_refused(words, tmp_path_factory, kept):
    file = tmp_path_factory.mktemp("b") / "x"
    prepared_files.save(
        file, tokenized_rows.tokenize_examples([example(0, "aa")], words, Lengths(4, 4)), "a" * 16
    )
    content = file.read_bytes()
    assert len(content) > 900
    file.write_bytes(content[:kept])
    assert not prepared_files.is_current(file, "a" * 16)
    with pytest.raises(UserError):
        prepared_files.load(file)


def break_bytes(arrays):
    arrays["texts/content"][:2] = 0xC3, 0x41


def cut_a_letter(arrays):
    arrays["texts/offsets"][1] += 1


def drop_offsets(arrays):
    del arrays["accepted/offsets"]


@pytest.mark.parametrize(
    ("change", "said"),
    [(break_bytes, "changed"), (cut_a_letter, "letters"), (drop_offsets, "kind"), (None, "")],
)
def test_a_file_whose_texts_are_none_is_refused_though_its_checksum_holds(words, tmp_path, change, said):
    rows = [example(0, "aa"), replace(example(1, "éé bb"), accepted=("bb", "cc"))]
    prepared_files.save(tmp_path / "x", tokenized_rows.tokenize_examples(rows, words, Lengths(4, 4)), "key")
    arrays = {name: np.array(array) for name, array in load_file(tmp_path / "x").items()}
    about = json.loads(arrays.pop(prepared_files.ABOUT).tobytes())
    if change:
        change(arrays)
    sizes = {name: array.nbytes for name, array in arrays.items()}
    digests = row_digests.from_json(about["digests"])
    arrays[prepared_files.ABOUT] = prepared_files.pack_about(digests, sizes, lambda name: [arrays[name]])
    storage.write_arrays(tmp_path / "y", arrays)
    if change is None:  # the forgery itself is sound
        assert list(prepared_files.load(tmp_path / "y").texts) == ["aa", "éé bb"]
        return
    with pytest.raises(UserError, match=said):
        prepared_files.load(tmp_path / "y")
