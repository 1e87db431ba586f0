"""Token losses count what the model does not see, the same whether rows are counted at once or in parts."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from elm_jax.data import task_rows, token_losses
from elm_jax.data.ragged import compute_offsets
from elm_jax.data.token_losses import TokenizationCounts, TokenizationReport
from elm_jax.tasks.data_source import Lengths
from elm_jax.telemetry.progress import Stages
from elm_jax.tokenizers import sentencepiece

LENGTHS = Lengths(prompt=3, answer=2)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    file = tmp_path_factory.mktemp("v") / "m"
    return sentencepiece.train(["one two three no yes"], file, 50, kind="word", extra_ids=0)


def counted(rows, tokenizer, lengths=LENGTHS):
    """Returns what is lost of rows of an input, a target and choices."""
    texts = [
        [row[0] for row in rows],
        [row[1] for row in rows],
        [choice for row in rows for choice in row[2]],
    ]
    ids = [tokenizer.encode_all(each) for each in texts]
    starts = compute_offsets(len(row[2]) for row in rows)
    return token_losses.build_tokenization_report(texts, ids, starts, tokenizer, lengths)


def test_every_kind_of_loss_is_counted(words):
    losses = counted(
        [
            ("one two\nthree", "no", ["no", "yes"]),  # of 3 tokens 2 are kept beside end-of-sequence
            ("one zwei", "no yes", ["no yes", "no", "no"]),  # of 2 tokens of an answer 1 is kept
            ("caf\u00e9", "yes", ["yes"]),
            ("cafe\u0301", "yes", []),
        ],
        words,
    )
    assert losses.inputs == TokenizationCounts(texts=4, tokens=7, unknown=3, cut=1, lost=1)
    assert losses.targets == TokenizationCounts(texts=4, tokens=5, unknown=0, cut=1, lost=1)
    assert losses.choices == TokenizationCounts(texts=6, tokens=7, unknown=0, cut=1, lost=1)
    assert losses.folded == {"\n": 1}
    assert losses.missing["zwei"] == 1
    assert (losses.same_choices, losses.repeated_choices, losses.single_choices) == (1, 1, 1)
    assert (losses.composed, losses.decomposed) == (1, 1)


def test_rows_of_which_all_is_seen_have_no_losses(words):
    losses = counted([("one two", "no", ["no", "yes"])], words)
    assert token_losses.describe_tokenization_report(losses) == ""


ROWS = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["one", "zwei", "\n", "\t", "é", "e\u0301"]), max_size=6).map(" ".join),
        st.sampled_from(["no", "yes no", "drei"]),
        st.lists(st.sampled_from(["no", "yes", "drei", "vier"]), max_size=3),
    ),
    max_size=8,
)


@settings(deadline=None)
@given(ROWS, st.integers(0, 8))
def test_parts_add_up_and_are_read_back_as_they_were_written(words, rows, split):
    whole = counted(rows, words)
    assert (
        token_losses.sum_tokenization_reports(
            [counted(rows[:split], words), None, counted(rows[split:], words)]
        )
        == whole
    )
    assert token_losses.parse_tokenization_report(token_losses.dump_tokenization_report(whole)) == whole
    assert whole.inputs.texts == len(rows)


def test_the_worst_are_named_first_and_only_a_hundred_are_kept():
    missing = {chr(0x4E00 + number): number + 1 for number in range(200)}
    assert token_losses.name_worst(missing).startswith(
        f"{chr(0x4E00 + 199)!r} 200, {chr(0x4E00 + 198)!r} 199"
    )
    assert list(token_losses.keep_worst(missing).values()) == [*range(200, 100, -1)]


def test_characters_are_missing_from_a_vocabulary_of_characters(tmp_path):
    letters = sentencepiece.train(["abc cab bca"], tmp_path / "m", 50, kind="unigram", extra_ids=0)
    losses = counted([("abc {x} {", "a", [])], letters)
    assert not letters.has_words_only
    assert losses.missing == {"{": 2, "}": 1, "x": 1}


def test_newlines_count_only_where_they_are_spaces_to_the_vocabulary(words):
    assert words.folded == {"\n", "\t", "\r"}
    bytes_only = sentencepiece.Tokenizer(300, 0, 1, "", _Bytes(), unknown=None)
    assert bytes_only.folded == frozenset()
    assert counted([("a\nb", "c", [])], bytes_only).folded == {}


def test_a_verb_says_in_one_line_what_is_lost_and_nothing_if_all_is_seen(words):
    stages = Stages(Console(file=io.StringIO(), width=1000))
    task_rows.print_tokenization_report(stages, [counted([("one", "no", ["no", "yes"])], words), None])
    assert stages.console.file.getvalue() == ""
    task_rows.print_tokenization_report(stages, [counted([("one zwei", "no", ["no"])], words)] * 2)
    (line,) = stages.console.file.getvalue().splitlines()
    for part in ("50.0% of the tokens of inputs unknown", "'zwei' 2", "2 rows with a single choice"):
        assert part in line


class _Bytes:
    """A tokenizer of bytes, to which everything is known."""

    def encode_all(self, texts):
        return [[3 + byte for byte in text.encode()] for text in texts]

    def decode(self, ids):
        return bytes(number - 3 for number in ids if 3 <= number < 259).decode(errors="replace")


def test_an_empty_sum_is_no_loss():
    assert token_losses.sum_tokenization_reports([None]) == TokenizationReport()
    assert np.array_equal(token_losses.find_choice_faults([], []), (False, False, False))
