"""Explain: a selection says who voted, how clear it was, and by which keys."""

import numpy as np

from elm_jax.routing.centroid import centroid
from elm_jax.routing.explain import explain_selection
from elm_jax.routing.inputs import KeyIndex, Queries
from elm_jax.routing.roe import roe
from elm_jax.routing.uniform import uniform

INDEX = KeyIndex(
    experts=("a/1", "b/1"),
    datasets=(("a",), ("b",)),
    expert_of_row=np.array([0, 0, 1]),
    vectors=np.array([[1.0, 0.0], [0.75, 0.0], [0.25, 1.0]], np.float32),
    texts=("a fine\nkey", "another", "b" * 99),
    embedder="toy",
    text_format="instance",
)
VECTORS = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], np.float32)
QUERIES = Queries("t/1", ("r0", "r1", "r2"), vectors=VECTORS, embedder="toy", text_format="instance")


def test_votes_come_first_with_how_far_the_winner_is_ahead():
    lines = explain_selection(roe(QUERIES, INDEX))
    assert lines[:3] == [
        "   2 of 3 votes  a/1",
        "   1 of 3 votes  b/1",
        "margin: a/1 leads b/1 by 1",
    ]
    assert lines[3] == "query r0: nearest is a/1 at 1.000"


def test_all_k_votes_of_a_query_are_counted():
    assert explain_selection(roe(QUERIES, INDEX, k=3))[0] == "   6 of 9 votes  a/1"


def test_every_query_names_its_nearest_key_and_how_much_nearer_it_is_than_another_experts():
    lines = explain_selection(roe(QUERIES, INDEX), QUERIES, INDEX)
    # The nearest key of b is 0.25 of r0, behind both of a.
    assert lines[3] == "query r0: nearest is a/1 at 1.000, key 'a fine key', 0.750 nearer than b/1"
    assert lines[5] == f"query r2: nearest is b/1 at 1.000, key '{'b' * 60}…', 1.000 nearer than a/1"


def test_without_another_expert_there_is_no_margin():
    lines = explain_selection(roe(QUERIES, INDEX, exclude=["b"]), QUERIES, INDEX, exclude=["b"])
    assert lines[0] == "   3 of 3 votes  a/1"
    assert lines[1] == "query r0: nearest is a/1 at 1.000, key 'a fine key'"


def test_a_key_is_not_named_where_something_else_decided():
    assert (
        explain_selection(centroid(QUERIES, INDEX), QUERIES, INDEX)[-1] == "query r2: nearest is b/1 at 0.970"
    )


def test_a_router_that_asks_nobody_has_nothing_to_explain():
    assert explain_selection(uniform(QUERIES, INDEX), QUERIES, INDEX) == []
