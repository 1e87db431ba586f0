"""Scores of texts: tokenised as an evaluation tokenises, for a base, a run and an expert."""

import numpy as np
import pytest

import elm_jax
from elm_jax.errors import UserError
from elm_jax.experts.library import Library
from elm_jax.session import opening

TEXTS = ["the film was good", "bad"]
CHOICES = ["no", "yes, it was"]


@pytest.fixture(scope="module")
def run(make_run):
    return make_run(keyed=False)


def tokens(run, texts, *, answers=False):
    """Token ids as the definition has them: padded, answers with end-of-sequence, prompts as the run says."""
    ends = [run.tokenizer.eos] if answers or run.tokenizer.input_eos else []
    ids = [[*run.tokenizer.encode(text), *ends] for text in texts]
    width = max(map(len, ids))
    return np.array([own + [0] * (width - len(own)) for own in ids])


@pytest.fixture(scope="module")
def expected(run):
    def expected(expert=None):
        answers = np.tile(tokens(run, CHOICES, answers=True), (len(TEXTS), 1, 1))
        return elm_jax.score_choices(run.base, tokens(run, TEXTS), answers, expert)

    return expected


def test_texts_are_scored_as_their_tokens_are(run, expected):
    found = elm_jax.score(run, TEXTS, CHOICES)
    np.testing.assert_allclose(np.asarray(found), expected(), rtol=1e-5)
    assert found.best == [CHOICES[best] for best in expected().argmax(axis=1)]


def test_an_expert_is_given_by_id_or_as_a_record(run, expected):
    name = Library(run).ids()[0]
    with_expert = expected(Library(run)[name])
    assert not np.allclose(with_expert, expected(), rtol=1e-3)
    for expert in (name, Library(run)[name]):
        found = elm_jax.score(run, TEXTS, CHOICES, expert=expert)
        np.testing.assert_allclose(np.asarray(found), with_expert, rtol=1e-5)


def test_a_model_knows_its_tokenizer_by_where_it_was_loaded_from(run, expected):
    base = run.workspace.base
    for model in (elm_jax.load_model(base), str(base), str(run.workspace.root)):
        np.testing.assert_allclose(np.asarray(elm_jax.score(model, TEXTS, CHOICES)), expected(), rtol=1e-5)


def test_each_text_may_have_choices_of_its_own(run, expected):
    found = elm_jax.score(run, TEXTS, [CHOICES[:1], CHOICES])
    assert [len(values) for values in found.values] == [1, 2]
    np.testing.assert_allclose(found[1], expected()[1], rtol=1e-5)
    assert elm_jax.score(run, TEXTS[0], CHOICES).texts == (TEXTS[0],)


def test_scores_are_a_table_of_pandas(run):
    pytest.importorskip("pandas", reason="pandas is not installed")
    found = elm_jax.score(run, TEXTS, CHOICES)
    table = found.to_pandas()
    assert list(table.columns) == ["text", "choice", "score", "best"]
    assert list(table[table["best"]]["choice"]) == found.best


@pytest.mark.parametrize("choices", [[], [CHOICES], [CHOICES, []]])
def test_texts_without_choices_are_refused(run, choices):
    with pytest.raises(UserError, match="choices"):
        elm_jax.score(run, TEXTS, choices)


def test_a_model_that_was_made_has_no_tokenizer(run):
    made = opening.base_model.make_base(run.base.config, run.base.params)
    with pytest.raises(UserError, match="score_choices"):
        elm_jax.score(made, TEXTS, CHOICES)
    with pytest.raises(UserError, match=r"Library\(path\)\[id\]"):
        elm_jax.score(elm_jax.load_model(run.workspace.base), TEXTS, CHOICES, expert="a/b")
