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


def test_contextual_divides_shares_by_those_of_the_mean_probabilities_without_content():
    """As in `get_p_content_free` of the authors' code, with W the inverse diagonal and b 0."""
    after = np.array([[0.06, 0.02], [0.10, 0.02]])  # on average 0.08 and 0.02: shares 0.8 and 0.2
    given = np.log([0.45, 0.05]), [1, 1], ["a", "b"], np.log(after)
    found = rank.normalize_scores(rank.parse_normalization("contextual"), *given)
    np.testing.assert_allclose(found, np.log([0.9 / 0.8, 0.1 / 0.2]))


def test_contextual_takes_answers_of_many_tokens_whose_probabilities_are_below_the_least_number():
    given = np.array([-2000.0, -2001.0]), [9, 9], ["a", "b"], np.array([[-3000.0, -3002.0]])
    found = rank.normalize_scores(rank.parse_normalization("contextual"), *given)
    np.testing.assert_allclose(found[1] - found[0], 1.0)  # -1 with the prompt, and 2 for what it is without


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
