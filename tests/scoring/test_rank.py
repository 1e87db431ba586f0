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


@pytest.mark.parametrize(
    ("way", "scores"),
    [
        ("sum", [-3.0, -4.0]),
        ("mean", [-0.75, -4.0]),
        ("length:0.5", [-1.5, -4.0]),
        ("length:0", [-3.0, -4.0]),
        ("characters", [-1.5, -4.0]),
        ("bytes", [-1.0, -4.0]),
        ("calibrated", [-2.0, -0.5]),
        ("pmi:the answer is", [-2.0, -0.5]),
    ],
)
def test_a_score_is_of_the_sum_and_of_the_choice_alone(way, scores):
    # Of four tokens, and two characters in three bytes; of one token, and no character.
    given = np.array([-3.0, -4.0]), [4, 1], ["né", ""], np.array([[-1.0, -3.5]])
    assert rank.normalize_scores(rank.parse_normalization(way), *given).tolist() == scores


def test_contextual_takes_off_the_mean_share_that_choices_have_without_content():
    # Shares 0.8 and 0.2 with the prompt; without content 0.9 and 0.1, 0.5 and 0.5, on average 0.7 and 0.3.
    shares = np.array([0.8, 0.2]), np.array([[0.9, 0.1], [0.5, 0.5]])
    given = np.log(shares[0]) - 7.0, [1, 1], ["a", "b"], np.log(shares[1]) - np.array([[3.0], [9.0]])
    found = rank.normalize_scores(rank.parse_normalization("contextual"), *given)
    np.testing.assert_allclose(found, np.log([0.8 / 0.7, 0.2 / 0.3]))


def test_an_unknown_score_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"No score named 'means' in rank classification .* 'mean'"):
        rank.parse_normalization("means")


@pytest.mark.parametrize("way", ["length", "length:long", "length:inf", "pmi", "pmi:", "mean:2", "sum:"])
def test_a_value_that_a_score_does_not_take_or_lacks_is_refused(way):
    with pytest.raises(UserError, match=f"got '{way}'"):
        rank.parse_normalization(way)


def test_the_first_of_equally_good_choices_is_predicted():
    scores = np.array([[-2.0, -1.0, -1.0], [-5.0, -5.0, -5.0], [-9.0, -np.inf, -8.0]])
    assert [rank.predict(row) for row in scores] == [1, 0, 2]
