"""Votes elect by number, then by summed similarity, then by who came first."""

import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.routing import vote
from elm_jax.routing.inputs import KeyIndex, Queries

INDEX = KeyIndex(
    experts=("a/1", "b/1", "c/1"),
    datasets=(("a",), ("b",), ("c",)),
    expert_of_row=np.arange(3),
    vectors=np.eye(3, dtype=np.float32),
    texts=("x", "y", "z"),
    embedder="toy",
    text_format="instance",
)


def queries(count):
    return Queries("t/1", tuple(f"r{row}" for row in range(count)))


def test_most_votes_win_over_larger_similarity():
    voters, near = np.array([[0], [1], [1]]), np.array([[0.9], [0.1], [0.1]])
    assert vote.rank_experts(voters, near, 3) == [(1, 2), (0, 1)]


def test_equal_votes_go_to_the_larger_summed_similarity():
    voters, near = np.array([[0, 1], [1, 0]]), np.array([[0.9, 0.8], [0.7, 0.1]])
    assert vote.rank_experts(voters, near, 3) == [(1, 2), (0, 2)]


def test_if_that_is_equal_too_the_first_vote_wins():
    voters, near = np.array([[2, 0], [1, 1]]), np.array([[0.5, 0.5], [0.25, 0.25]])
    assert vote.rank_experts(voters, near, 3) == [(1, 2), (2, 1), (0, 1)]


def test_the_selection_has_the_votes_sorted_and_weights_that_sum_to_one():
    voters, near = np.array([[0], [1], [1]]), np.array([[0.9], [0.1], [0.2]])
    even = vote.elect_experts("roe", queries(3), INDEX, voters, near, experts=2)
    assert list(even.votes.items()) == [("b/1", 2), ("a/1", 1)]
    assert even.weights == {"b/1": 0.5, "a/1": 0.5}
    assert even.nearest == (("a/1", 0.9), ("b/1", 0.1), ("b/1", 0.2))
    by_votes = vote.elect_experts("roe", queries(3), INDEX, voters, near, experts=2, weighting="votes")
    assert by_votes.weights == pytest.approx({"b/1": 2 / 3, "a/1": 1 / 3})


def test_no_more_experts_are_chosen_than_got_votes():
    selection = vote.elect_experts("roe", queries(1), INDEX, np.array([[2]]), np.array([[0.5]]), experts=3)
    assert selection.weights == {"c/1": 1.0}


def test_a_query_without_a_neighbour_is_no_voter():
    selection = vote.elect_experts(
        "roe", queries(2), INDEX, np.array([[-1], [2]]), np.array([[-np.inf], [0.5]])
    )
    assert (selection.queries, selection.nearest) == (("r1",), (("c/1", 0.5),))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"experts": 0}, "'t/1', got 0"),
        ({"weighting": "loud"}, "uniform or votes, got 'loud'"),
    ],
)
def test_senseless_options_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        vote.elect_experts("roe", queries(1), INDEX, np.array([[0]]), np.array([[1.0]]), **options)


def test_an_election_without_votes_is_refused():
    with pytest.raises(UserError, match="'bm25'"):
        vote.elect_experts("bm25", queries(1), INDEX, np.array([[-1]]), np.array([[0.0]]))
