"""Scores of choices: sums over their own tokens, and what is made of them by name."""

import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.scoring import rank

LOGP = np.array([[-1.0, -2.0, -4.0, np.nan], [-0.5, -0.125, -8.0, -0.25]], np.float32)


def test_a_score_is_the_sum_over_its_path_and_padding_never_leaks():
    # Three edges of the first trie, four of the second; 4 is no edge.
    paths = np.array([[[0, 1, 4], [2, 4, 4]], [[0, 1, 3], [2, 3, 4]]])
    assert rank.answer_scores(LOGP, paths).tolist() == [[-3.0, -4.0], [-0.875, -8.25]]


def test_the_mean_is_over_a_choices_own_tokens():
    assert rank.normalize_scores("mean", np.array([-3.0, -4.0]), [2, 1]).tolist() == [-1.5, -4.0]


def test_calibrated_is_the_sum_less_that_without_the_prompt():
    found = rank.normalize_scores("calibrated", np.array([-3.0, -4.0]), [2, 1], np.array([-1.0, -3.5]))
    assert found.tolist() == [-2.0, -0.5]


def test_the_sum_is_left_as_it_is():
    assert rank.normalize_scores("sum", np.array([-3.0, -4.0]), [2, 1]).tolist() == [-3.0, -4.0]


def test_an_unknown_score_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"No score named 'means' in rank classification .* 'mean'"):
        rank.normalize_scores("means", np.array([-3.0]), [1])


def test_the_first_of_equally_good_choices_is_predicted():
    scores = np.array([[-2.0, -1.0, -1.0], [-5.0, -5.0, -5.0], [-9.0, -np.inf, -8.0]])
    assert [rank.predict(row) for row in scores] == [1, 0, 2]
