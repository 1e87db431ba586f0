"""Scores of choices from token log-probabilities: sums over what is real, and nothing else."""

import jax.numpy as jnp
import numpy as np
import pytest

from elm_jax.scoring import rank

LOGP = np.array([[[-1.0, -2.0, -4.0], [-3.0, -0.5, -0.25]], [[-0.5, -0.125, -8.0], [-2.0, -2.0, -2.0]]])
MASK = np.array([[[1, 1, 0], [1, 0, 0]], [[1, 1, 1], [0, 0, 0]]], bool)
REAL = np.ones((2, 2), bool)


def test_a_score_is_the_sum_over_the_real_tokens():
    assert rank.score_choices(LOGP, MASK, REAL).tolist() == [[-3.0, -3.0], [-8.625, 0.0]]


def test_per_token_is_the_mean_over_the_real_tokens():
    found = rank.score_choices(LOGP, MASK, REAL, per_token=True)
    assert found.tolist() == [[-1.5, -3.0], [-2.875, 0.0]]


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("nonsense", [np.nan, np.inf, -np.inf, 1e30])
def test_what_stands_at_padding_never_leaks(nonsense, per_token):
    found = rank.score_choices(np.where(MASK, LOGP, nonsense), MASK, REAL, per_token=per_token)
    np.testing.assert_array_equal(found, rank.score_choices(LOGP, MASK, REAL, per_token=per_token))


@pytest.mark.parametrize("per_token", [False, True])
def test_a_choice_that_only_fills_gets_minus_infinity_whatever_its_tokens_say(per_token):
    real = np.array([[True, False], [False, True]])
    logp = np.where(real[..., None], LOGP, np.nan)
    found = np.asarray(rank.score_choices(logp, MASK, real, per_token=per_token))
    assert np.isneginf(found[~real]).all()
    assert np.isfinite(found[real]).all()


def test_the_first_of_equally_good_choices_is_predicted():
    scores = np.array([[-2.0, -1.0, -1.0], [-5.0, -5.0, -5.0], [-9.0, -np.inf, -8.0]])
    assert rank.predict(scores).tolist() == [1, 0, 2]


def test_token_log_probs_are_log_softmax_at_the_tokens():
    # p = (1, 3, 4) / 8.
    logits = jnp.log(jnp.array([[[1.0, 3.0, 4.0], [1.0, 3.0, 4.0]]]))
    found = rank.token_log_probs(logits, jnp.array([[1, 2]]))
    np.testing.assert_allclose(found, np.log([[3 / 8, 4 / 8]]), rtol=1e-6)


def test_token_log_probs_of_huge_logits_are_finite():
    logits = jnp.array([[1e4, 0.0], [-1e4, 0.0]])
    assert rank.token_log_probs(logits, jnp.array([1, 1])).tolist() == [-1e4, 0.0]
