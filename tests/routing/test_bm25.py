"""The BM25 router goes by shared words, rare ones first, and by nothing else."""

import math
from dataclasses import replace

import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.routing.bm25 import bm25
from elm_jax.routing.inputs import KeyIndex, Queries

TEXTS = ("the cat sat", "the dog ran", "the 7 planets")
INDEX = KeyIndex(
    experts=("a/1", "b/1"),
    datasets=(("a",), ("b",)),
    expert_of_row=np.array([0, 0, 1]),
    vectors=np.zeros((3, 2), np.float32),
    texts=TEXTS,
    embedder="toy",
    text_format="instance",
)


def ask(*texts):
    return Queries("t/1", tuple(f"r{row}" for row in range(len(texts))), texts=texts, text_format="instance")


def test_the_score_is_lucenes_formula():
    # One of 3 keys has the word, once, and all are of mean length: idf ln(1 + 2.5 / 1.5), tf 1 / (1 + 1.5).
    selection = bm25(ask("Dog"), INDEX)
    assert selection.weights == {"a/1": 1.0}
    assert selection.nearest[0][1] == pytest.approx(math.log(1 + 2.5 / 1.5) / 2.5, rel=1e-6)


def test_digits_and_single_letters_are_words():
    assert bm25(ask("7"), INDEX).votes == {"b/1": 1}


def test_equal_scores_are_ordered_by_row():
    assert bm25(ask("the"), INDEX, k=2).votes == {"a/1": 2}


def test_keys_without_a_shared_word_do_not_vote():
    selection = bm25(ask("cat", "zebra", ""), INDEX, k=3)
    assert (selection.votes, selection.queries) == ({"a/1": 1}, ("r0",))


def test_excluded_experts_neither_vote_nor_win():
    assert bm25(ask("the dog"), INDEX, exclude=["a"]).votes == {"b/1": 1}


def test_queries_that_share_no_word_with_any_key_are_refused():
    with pytest.raises(UserError, match=r"'t/1'.*'bm25'"):
        bm25(ask("zebra"), INDEX)


def test_keys_without_words_are_near_nothing():
    with pytest.raises(UserError, match="'t/1'"):
        bm25(ask("cat"), replace(INDEX, texts=("", "!", "?")))


@pytest.mark.parametrize("k", [0, 4])
def test_a_k_that_the_keys_cannot_give_is_refused(k):
    with pytest.raises(UserError, match=f"1 to 3.*got {k}"):
        bm25(ask("cat"), INDEX, k=k)


def test_queries_without_texts_or_of_another_format_are_refused():
    with pytest.raises(UserError, match=r"1 queries.*got 0"):
        bm25(replace(ask("cat"), texts=()), INDEX)
    with pytest.raises(UserError, match="'instance', got 'label'"):
        bm25(replace(ask("cat"), text_format="label"), INDEX)


def test_no_progress_bar_is_drawn(capfd):
    bm25(ask("cat"), INDEX)
    assert capfd.readouterr() == ("", "")
