"""The centroid router compares directions with the mean of each expert's keys."""

import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.routing.centroid import centroid
from elm_jax.routing.inputs import KeyIndex, Queries

# a's keys average to (1, 0) although one of them points north; b's to (0, 1); c has none.
INDEX = KeyIndex(
    experts=("a/1", "b/1", "c/1"),
    datasets=(("a",), ("b",), ("c",)),
    expert_of_row=np.array([0, 0, 1]),
    vectors=np.array([[2.0, -3.0], [0.0, 3.0], [0.0, 0.5]], np.float32),
    texts=("a0", "a1", "b0"),
    embedder="toy",
    text_format="instance",
)


def ask(*vectors):
    rows = tuple(f"r{row}" for row in range(len(vectors)))
    return Queries("t/1", rows, vectors=np.array(vectors, np.float32), embedder="toy", text_format="instance")


def test_a_query_votes_for_the_nearest_mean_not_the_nearest_key():
    selection = centroid(ask([0.6, 0.8]), INDEX)
    assert selection.weights == {"b/1": 1.0}
    assert selection.nearest[0][1] == pytest.approx(0.8)


def test_lengths_do_not_count():
    selection = centroid(ask([8.0, 6.0], [0.8, 0.6], [0.0, 100.0]), INDEX)
    assert selection.votes == {"a/1": 2, "b/1": 1}
    assert [similarity for _, similarity in selection.nearest] == pytest.approx([0.8, 0.8, 1.0])


def test_an_expert_without_keys_is_never_near():
    # West is farther from a's mean than any zero vector, and yet c has nothing to be near to.
    assert centroid(ask([-1.0, -0.5]), INDEX).votes == {"b/1": 1}


def test_excluded_experts_are_not_chosen():
    assert centroid(ask([1.0, 0.0]), INDEX, exclude=["a"]).votes == {"b/1": 1}


def test_experts_that_have_no_keys_at_all_are_an_error():
    with pytest.raises(UserError, match="elm index"):
        centroid(ask([1.0, 0.0]), INDEX, exclude=["a", "b"])
