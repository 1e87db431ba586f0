"""RoE: the queries' nearest keys vote, and every one of the k counts."""

from dataclasses import replace

import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.routing import roe
from elm_jax.routing.inputs import KeyIndex, Queries

EAST, NORTH, WEST = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]
INDEX = KeyIndex(
    experts=("a/1", "b/1", "c/1"),
    datasets=(("dream",), ("quail",), ("cos_e", "dream")),
    expert_of_row=np.array([0, 0, 1, 1, 2]),
    vectors=np.array([EAST, [0.5, 0.0], NORTH, [0.0, 0.5], WEST], np.float32),
    texts=("a0", "a1", "b0", "b1", "c0"),
    embedder="toy",
    text_format="instance",
)


def ask(*vectors, **changes):
    rows = tuple(f"r{row}" for row in range(len(vectors)))
    asked = Queries(
        "t/1", rows, vectors=np.array(vectors, np.float32), embedder="toy", text_format="instance"
    )
    return replace(asked, **changes)


def test_the_expert_nearest_to_most_queries_wins():
    selection = roe.roe(ask(EAST, NORTH, [0.1, 2.0]), INDEX)
    assert selection.weights == {"b/1": 1.0}
    assert selection.votes == {"b/1": 2, "a/1": 1}
    assert selection.nearest == (("a/1", 1.0), ("b/1", 1.0), ("b/1", 2.0))
    assert (selection.task, selection.router, selection.queries) == ("t/1", "roe", ("r0", "r1", "r2"))


def test_all_k_neighbours_vote_not_only_the_nearest():
    # Products with a0, a1, b0, b1, c0: 0.8, 0.4, 0.9, 0.45, -0.8, so that k = 1 would give b alone. With
    # k = 4 both have two votes, and b's lie nearer.
    query = [0.8, 0.9]
    assert roe.roe(ask(query), INDEX, k=2).votes == {"b/1": 1, "a/1": 1}
    assert roe.roe(ask(query), INDEX, k=3).votes == {"b/1": 2, "a/1": 1}
    assert list(roe.roe(ask(query), INDEX, k=4).votes.items()) == [("b/1", 2), ("a/1", 2)]


def test_the_election_closes_however_few_queries_there_are():
    assert roe.roe(ask(WEST), INDEX).weights == {"c/1": 1.0}


def test_equally_near_keys_are_ordered_by_row():
    same = replace(INDEX, vectors=np.ones((5, 2), np.float32))
    assert roe.roe(ask(EAST, NORTH), same).votes == {"a/1": 2}


def test_several_experts_share_the_weight_as_asked():
    asked = ask(EAST, NORTH, NORTH, NORTH)
    assert roe.roe(asked, INDEX, experts=2).weights == {"b/1": 0.5, "a/1": 0.5}
    assert roe.roe(asked, INDEX, experts=2, weighting="votes").weights == {"b/1": 0.75, "a/1": 0.25}


def test_an_expert_trained_on_an_excluded_dataset_neither_votes_nor_wins():
    selection = roe.roe(ask(EAST, WEST), INDEX, exclude=["dream"])
    assert selection.votes == {"b/1": 2}
    assert roe.roe(ask(EAST, WEST), INDEX, exclude="dream").votes == {"b/1": 2}


def test_k_may_be_more_than_the_rows_that_exclusion_leaves():
    assert roe.roe(ask(EAST), INDEX, k=5, exclude=["dream"]).votes == {"b/1": 2}


def test_per_instance_every_query_gets_its_own_expert():
    selection = roe.roe_per_instance(ask(EAST, NORTH, WEST, [0.0, 3.0]), INDEX)
    assert [expert for expert, _ in selection.nearest] == ["a/1", "b/1", "c/1", "b/1"]
    assert selection.votes == {"b/1": 2, "c/1": 1, "a/1": 1}
    assert selection.weights == {"b/1": 0.5, "c/1": 0.25, "a/1": 0.25}


def test_per_instance_a_querys_own_neighbours_vote():
    # West's nearest key is c's, but of the three nearest two are b's (product 0, before a's -0.5).
    selection = roe.roe_per_instance(ask(WEST), INDEX, k=3)
    assert selection.nearest == (("b/1", 0.0),)


def test_neighbours_name_the_rows_so_that_a_choice_can_be_explained():
    similarities, rows = roe.find_neighbours(ask(NORTH), INDEX, 2)
    assert [INDEX.texts[row] for row in rows[0]] == ["b0", "b1"]
    assert similarities.tolist() == [[1.0, 0.5]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"embedder": "other"}, "'t/1'.*embedder 'toy', got 'other'"),
        ({"text_format": "label"}, "text format 'instance', got 'label'"),
        ({"vectors": None}, "'t/1', got none"),
        ({"vectors": np.ones((1, 3), np.float32)}, "width 2.*got width 3"),
        ({"row_ids": ("r0", "r1")}, "2 queries.*got 1"),
    ],
)
def test_queries_that_do_not_compare_with_the_keys_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        roe.roe(ask(EAST, **changes), INDEX)


def test_excluding_everything_is_refused():
    with pytest.raises(UserError, match="dream, quail, got none among 3"):
        roe.roe(ask(EAST), INDEX, exclude=["quail", "dream"])
