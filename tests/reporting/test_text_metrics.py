"""Judging written answers: values that one can work out by hand, and intervals that say how sure they are."""

import re
import sys

import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.reporting import text_metrics

TARGETS = ["the cat sat on the mat", "it rains", "a dog ran home today", "yes"]
TOLD = ["the cat sat on the mat", "it pours", "a dog ran home", "no"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The Cat", "cat"),
        ("an  apple,\na day", "apple day"),
        ("U.S.A.", "usa"),
        ("theatre", "theatre"),
        ("A-1", "a1"),  # punctuation goes before articles do, and leaves no space
        ("the", ""),
        ("Ärzte «the» Band", "ärzte « » band"),  # only ASCII's punctuation
    ],
)
def test_texts_are_normalised_as_by_squad(text, wanted):
    assert text_metrics.normalize_answer(text) == wanted


@pytest.mark.parametrize(
    ("target", "told", "f1"),
    [
        ("the big cat", "Big cat!", 1.0),
        ("red blue green", "red green", 2 * 2 / 5),
        ("red red", "red", 2 / 3),  # a word counts as often as it stands in both
        ("red", "red red red", 0.5),
        ("red", "blue", 0.0),
        ("the", "a", 1.0),
        ("the", "red", 0.0),
    ],
)
def test_squads_f1_is_that_of_shared_words(target, told, f1):
    assert text_metrics.word_f1(target, told) == pytest.approx(f1)
    assert text_metrics.squad([target], [told])["f1"] == pytest.approx(100 * f1)


def test_squads_exact_match_is_of_normalised_texts_and_exact_match_is_not():
    assert text_metrics.squad(["the Cat", "dog"], ["cat.", "dogs"])["em"] == 50
    assert text_metrics.exact_match(["the Cat", " dog"], ["cat.", "dog "]) == {"exact_match": 50}


@pytest.mark.parametrize(
    ("metric", "of_first", "of_best"),
    [
        ("exact_match", [0, 100], [100, 100]),
        ("squad_em", [0, 100], [100, 100]),
        ("squad_f1", [0, 100], [100, 100]),
        ("rouge_1", [0, 100], [100, 100]),
        ("rouge_2", [0, 100], [100, 100]),
        ("rouge_l", [0, 100], [100, 100]),
    ],
)
def test_of_several_accepted_answers_the_best_counts(metric, of_first, of_best):
    accepted = [["one cat", "big dog"], ["red fish", "sea"]]
    firsts, told = [own[0] for own in accepted], ["big dog", "red fish"]
    assert list(text_metrics.compute_metric(metric, firsts, told).rows) == pytest.approx(of_first)
    found = text_metrics.compute_metric(metric, firsts, told, accepted=accepted)
    assert list(found.rows) == pytest.approx(of_best)


def test_the_value_is_the_mean_of_the_rows_and_the_interval_a_bootstraps():
    told = text_metrics.compute_metric("exact_match", TARGETS * 50, TOLD * 50)
    assert told.measure == "exact match"
    assert told.value == 25
    assert told.rows == (100, 0, 0, 0) * 50
    # 200 rows at a quarter: a standard error of 3.06 points.
    assert told.low == pytest.approx(25 - 1.96 * 3.06, abs=1)
    assert told.high == pytest.approx(25 + 1.96 * 3.06, abs=1)
    assert text_metrics.compute_metric("exact_match", TARGETS * 50, TOLD * 50) == told


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        right = rng.random(80) < 0.4
        told = text_metrics.compute_metric(
            "accuracy", ["y"] * 80, ["y" if each else "n" for each in right], samples=200, seed=seed
        )
        held += told.low <= 40 <= told.high
    assert 0.89 < held / 200 < 0.99


def test_rouge_names_its_tokeniser():
    pytest.importorskip("rouge_score", reason="the extra generation is not installed")
    told = text_metrics.compute_metric("rouge_1", ["cats sat", "über"], ["cat sat", "über"])
    assert told.measure == "rouge_1 (a-z0-9, stemmed)"
    assert told.rows[0] == 100
    assert text_metrics.compute_metric("rouge_l", ["a b c d"], ["d c b a"]).value == pytest.approx(25)
    assert text_metrics.compute_metric("rouge_2", ["a b c d"], ["a b x c d"]).value == pytest.approx(
        100 * 2 * 2 / (3 + 4)
    )


def test_bleu_of_all_rows_is_sacrebleus_and_its_interval_holds_it():
    sacrebleu = pytest.importorskip("sacrebleu", reason="the extra generation is not installed")
    told = text_metrics.compute_metric("bleu", TARGETS, TOLD)
    wanted = sacrebleu.corpus_bleu(TOLD, [TARGETS], tokenize="intl").score
    assert told.measure == "bleu (intl)"
    assert told.value == pytest.approx(wanted, rel=1e-12)
    assert told.low <= told.value <= told.high
    assert told.rows[0] == pytest.approx(100)
    assert told.rows[3] == 0
    assert np.mean(told.rows) != pytest.approx(told.value)


def test_bleu_with_its_arguments_swapped_is_named_so():
    pytest.importorskip("sacrebleu", reason="the extra generation is not installed")
    swapped = text_metrics.compute_metric("bleu", TARGETS, TOLD, swapped_bleu=True)
    assert swapped.measure == "bleu (intl, swapped)"
    assert swapped.value == pytest.approx(text_metrics.bleu(TOLD, TARGETS)["bleu"])
    assert swapped.value != pytest.approx(text_metrics.compute_metric("bleu", TARGETS, TOLD).value)
    same = text_metrics.compute_metric("exact_match", TARGETS, TOLD, swapped_bleu=True)
    assert same == text_metrics.compute_metric("exact_match", TARGETS, TOLD)


def test_a_hook_of_rows_has_an_interval_and_one_of_all_has_none(monkeypatch):
    def longer(targets, predictions, inputs):
        return [float(len(told) > len(source)) for told, source in zip(predictions, inputs, strict=True)]

    monkeypatch.setitem(text_metrics.HOOKS, "sari", longer)
    told = text_metrics.compute_metric("sari", ["x", "x"], ["bbb", "b"], ["aa", "aa"])
    assert (told.measure, told.value, told.rows) == ("sari", 0.5, (1.0, 0.0))
    assert (told.low, told.high) == (0.0, 1.0)
    monkeypatch.setitem(text_metrics.HOOKS, "mine", lambda *texts: 7)
    told = text_metrics.compute_metric("mine", ["x"], ["y"])
    assert (told.value, told.low, told.high, told.rows) == (7.0, None, None, ())


@pytest.mark.parametrize(
    ("metric", "targets", "told", "said"),
    [
        ("sari", ["a"], ["a"], "pip install easse.*HOOKS['sari']"),
        ("bert_score", ["a"], ["a"], "pip install bert-score.*HOOKS['bert_score']"),
        ("rogue_l", ["a"], ["a"], "Did you mean 'rouge_l'"),
        ("exact_match", [], [], "got none"),
        ("exact_match", ["a"], ["a", "b"], "for each of 1 rows, got 2"),
    ],
)
def test_what_cannot_be_judged_is_refused(metric, targets, told, said):
    with pytest.raises(UserError, match=re.escape(said).replace(r"\.\*", ".*")):
        text_metrics.compute_metric(metric, targets, told)


def test_a_package_that_is_not_there_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(UserError, match=r"sacrebleu for this.*Fix: pip install"):
        text_metrics.compute_metric("bleu", ["a"], ["a"])
