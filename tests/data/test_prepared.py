"""Prepared rows come back as they were rendered, cut but ended, and never in another's place."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elm_jax.data import prepared
from elm_jax.errors import UserError
from elm_jax.records import PromptedExample
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
    made = prepared.prepare(
        [example(0, "aa bb cc"), example(1, "aa", ("bb", "cc", "dd"), 0), example(2, "", (), None)],
        words,
        max_input=8,
        max_target=4,
    )
    a, b, c, d, e = (words.encode(word)[0] for word in WORDS[:5])
    assert [row.tolist() for row in made.inputs] == [[a, b, c, 1], [a, 1], [1]]
    assert [row.tolist() for row in made.targets] == [[c, d, 1], [b, 1], [d, e, 1]]
    assert [row.tolist() for row in prepared.choices_of(made, 0)] == [[b, 1], [c, d, 1]]
    assert [row.tolist() for row in prepared.choices_of(made, 1)] == [[b, 1], [c, 1], [d, 1]]
    assert prepared.choices_of(made, 2) == []
    assert made.labels.tolist() == [1, 0, -1]
    assert made.row_ids == ("row-0", "row-1", "row-2")
    assert made.texts == ("aa bb cc", "aa", "")


def test_what_is_too_long_is_cut_and_still_ended(words):
    made = prepared.prepare(
        [example(0, "aa bb cc dd", ("aa bb cc", "dd"), 0)], words, max_input=3, max_target=2
    )
    a, b, d = (words.encode(word)[0] for word in ("aa", "bb", "dd"))
    assert made.inputs[0].tolist() == [a, b, 1]
    assert made.targets[0].tolist() == [a, 1]
    assert [row.tolist() for row in prepared.choices_of(made, 0)] == [[a, 1], [d, 1]]


def test_inputs_may_go_without_end_of_sequence_but_targets_may_not(words):
    made = prepared.prepare([example(0, "aa bb cc")], words, max_input=3, max_target=4, input_eos=False)
    assert made.inputs[0].tolist() == words.encode("aa bb cc")
    assert made.targets[0][-1] == sentencepiece.EOS


def test_lists_are_read_like_any_sequence(words):
    made = prepared.prepare(
        [example(row, " ".join(WORDS[:row])) for row in range(4)], words, max_input=9, max_target=4
    )
    assert len(made.inputs) == 4
    assert made.inputs[-1].tolist() == made.inputs[3].tolist() == [*words.encode("aa bb cc"), 1]
    assert [row.tolist() for row in made.inputs[1:3]] == [made.inputs[1].tolist(), made.inputs[2].tolist()]
    with pytest.raises(IndexError):
        made.inputs[4]


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
def test_what_was_saved_comes_back_with_its_texts(words, tmp_path_factory, rows):
    found = [
        example(at, text, choices, len(choices) - 1 if choices else None)
        for at, (text, choices) in enumerate(rows)
    ]
    made = prepared.prepare(found, words, max_input=6, max_target=3)
    file = tmp_path_factory.mktemp("p") / "x.safetensors"
    prepared.save(file, made, "f" * 16)
    back = prepared.load(file, "f" * 16)
    assert list(prepared.Examples(back, "f" * 16)) == found
    for name in ("inputs", "targets", "choices"):
        ours, theirs = getattr(made, name), getattr(back, name)
        np.testing.assert_array_equal(ours.tokens, theirs.tokens)
        np.testing.assert_array_equal(ours.offsets, theirs.offsets)
        assert theirs.tokens.dtype == np.int32
    np.testing.assert_array_equal(made.labels, back.labels)
    np.testing.assert_array_equal(made.choice_starts, back.choice_starts)


def test_a_stale_missing_or_foreign_file_is_refused(words, tmp_path):
    file = tmp_path / "x.safetensors"
    made = prepared.prepare([example(0, "aa")], words, max_input=4, max_target=4)
    assert not prepared.is_current(file, "a" * 16)
    prepared.save(file, made, "a" * 16)
    assert prepared.is_current(file, "a" * 16)
    assert not prepared.is_current(file, "b" * 16)
    assert list(prepared.load(file).row_ids) == ["row-0"]
    with pytest.raises(UserError, match=r"fingerprint b{16} is wanted .* but a{16} came"):
        prepared.load(file, "b" * 16)
    with pytest.raises(UserError, match="no file is there"):
        prepared.load(tmp_path / "none.safetensors")
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(UserError, match="whole safetensors file at"):
        prepared.load(file)
    prepared.storage.write_arrays(file, {"weights": np.zeros(3)})
    with pytest.raises(UserError, match="the file there is another kind"):
        prepared.load(file)


def test_the_fingerprint_changes_with_data_template_options_vocabulary_and_lengths(words, tmp_path):
    other = sentencepiece.train(["aa bb"], tmp_path / "m", 50, kind="word", extra_ids=0)
    data, template = {"file": "reviews.jsonl", "bytes": "0123"}, {"jinja": "{{text}}"}
    rendered = [
        prepared.rendering(data, template, seed=1),
        prepared.rendering({**data, "bytes": "4567"}, template, seed=1),
        prepared.rendering(data, {"jinja": "{{text}} ?"}, seed=1),
        prepared.rendering(data, template, seed=2),
    ]
    made = [prepared.fingerprint(each, words, max_input=4, max_target=4) for each in rendered]
    made += [
        prepared.fingerprint(rendered[0], other, max_input=4, max_target=4),
        prepared.fingerprint(rendered[0], words, max_input=5, max_target=4),
        prepared.fingerprint(rendered[0], words, max_input=4, max_target=5),
        prepared.fingerprint(rendered[0], words, max_input=4, max_target=4, input_eos=False),
    ]
    assert len(set(made)) == 8
    assert all(each.startswith(rendered[0] + "-") for each in [made[0], *made[4:]])
    assert made[0] == prepared.fingerprint(
        prepared.rendering(data, template, seed=1), words, max_input=4, max_target=4
    )


def test_a_row_whose_target_is_none_of_its_choices_has_no_label(words):
    outside = PromptedExample("row-9", "aa", "cc", ("bb", "dd"), None)
    made = prepared.prepare([outside], words, max_input=4, max_target=4)
    assert made.labels.tolist() == [-1]
    assert len(prepared.choices_of(made, 0)) == 2


def test_bad_input_is_named(words):
    with pytest.raises(UserError, match="but none came"):
        prepared.prepare([], words, max_input=4, max_target=4)
    with pytest.raises(UserError, match="max_input=4 and max_target=1 came"):
        prepared.prepare([example(0, "aa")], words, max_input=4, max_target=1)
    for label in (-1, 2):
        bad = PromptedExample("row-9", "aa", "bb", ("bb", "cc"), label)
        with pytest.raises(UserError, match=f"'row-9' has 2 choices, but its label is {label}"):
            prepared.prepare([bad], words, max_input=4, max_target=4)


def test_padding_fills_the_end_and_a_longer_row_is_refused():
    rows = [np.array([5, 6, 1]), np.array([], np.int64), np.array([1])]
    padded = prepared.pad(rows, 4)
    assert padded.dtype == np.int32
    assert padded.tolist() == [[5, 6, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert prepared.pad([], 4).shape == (0, 4)
    with pytest.raises(UserError, match="at most 2 tokens are wanted, but row 0 has 3"):
        prepared.pad(rows, 2)


def test_twenty_thousand_rows_are_read_back_and_padded_in_a_second(words, tmp_path):
    made = prepared.prepare(
        [example(row, " ".join(WORDS)) for row in range(20_000)], words, max_input=32, max_target=4
    )
    prepared.save(tmp_path / "x", made, "a" * 16)
    start = time.perf_counter()
    back = prepared.load(tmp_path / "x")
    batch = prepared.pad(list(back.inputs), 32)
    taken = time.perf_counter() - start
    assert batch.shape == (20_000, 32)
    assert taken < 1.0


def test_a_local_file_is_mapped_and_not_read_whole(words, tmp_path):
    prepared.save(
        tmp_path / "x", prepared.prepare([example(0, "aa")], words, max_input=4, max_target=4), "a" * 16
    )
    back = prepared.load(tmp_path / "x")
    owner = back.inputs.tokens
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    assert isinstance(owner, np.memmap)


@given(st.integers(0, 900))
def test_a_file_that_was_cut_anywhere_is_refused(words, tmp_path_factory, kept):
    file = tmp_path_factory.mktemp("b") / "x"
    prepared.save(file, prepared.prepare([example(0, "aa")], words, max_input=4, max_target=4), "a" * 16)
    content = file.read_bytes()
    assert len(content) > 900
    file.write_bytes(content[:kept])
    assert prepared.carried(file) is None
    with pytest.raises(UserError):
        prepared.load(file)
