"""LoraHub: a search without gradients finds the weights that labelled examples ask for."""

import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.routing.inputs import KeyIndex, Queries
from elm_jax.routing.lorahub import lorahub

INDEX = KeyIndex(
    experts=("a/1", "b/1", "c/1"),
    datasets=(("a",), ("b",), ("c",)),
    expert_of_row=np.arange(3),
    vectors=np.eye(3, dtype=np.float32),
    texts=("x", "y", "z"),
    embedder="toy",
    text_format="instance",
)
QUERIES = Queries("t/1", ())


def bowl(weights):
    """Least at a = 0.5, b = -0.25 and c = 2, which is out of bounds."""
    return (weights["a/1"] - 0.5) ** 2 + (weights["b/1"] + 0.25) ** 2 + (weights["c/1"] - 2) ** 2


def test_the_search_finds_the_least_loss_within_bounds():
    found = lorahub(QUERIES, INDEX, loss=bowl, penalty=0.0, trials=200)
    assert found.weights == pytest.approx({"a/1": 0.5, "b/1": -0.25, "c/1": 1.5}, abs=0.03)
    assert (found.task, found.router) == ("t/1", "lorahub")


def test_the_penalty_draws_weights_to_zero():
    # Of (w - 0.5)² / 4 + 0.1 |w| the least is at w = 0.5 - 4 · 0.1 / 2.
    found = lorahub(
        QUERIES, INDEX, loss=lambda w: (w["a/1"] - 0.5) ** 2, shots=4, penalty=0.1, exclude=["b", "c"]
    )
    assert found.weights == pytest.approx({"a/1": 0.3}, abs=0.02)


def test_it_tries_no_more_often_than_asked_and_never_does_worse_than_the_base():
    tried = []

    def loss(weights):
        tried.append(dict(weights))
        return 0.0 if not any(weights.values()) else 1.0

    assert set(lorahub(QUERIES, INDEX, loss=loss, trials=9).weights.values()) == {0.0}
    assert len(tried) <= 9
    assert all(abs(weight) <= 1.5 for weights in tried for weight in weights.values())


def test_few_candidates_are_drawn_by_the_seed_alone():
    drawn = [
        tuple(lorahub(QUERIES, INDEX, loss=lambda w: 0.0, candidates=1, seed=seed).weights)
        for seed in range(9)
    ]
    assert drawn[0] == tuple(lorahub(QUERIES, INDEX, loss=lambda w: 0.0, candidates=1, seed=0).weights)
    assert {len(names) for names in drawn} == {1}
    assert len(set(drawn)) > 1


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(UserError, match="3 candidates and 4 trials"):
        lorahub(QUERIES, INDEX, loss=bowl, candidates=3, trials=4)
    with pytest.raises(UserError, match="got nan"):
        lorahub(QUERIES, INDEX, loss=lambda w: float("nan"))
