"""Token-level routers: their prototypes are what their papers say, worked out by hand."""

import jax
import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.models import gating
from elm_jax.routing import token_gate as gates
from elm_jax.routing.arrow import arrow
from elm_jax.routing.average_activation import average_activation
from elm_jax.routing.inputs import KeyIndex, Queries
from elm_jax.routing.spectr import spectr

INDEX = KeyIndex(
    experts=("a/1", "b/1"),
    datasets=(("a",), ("b",)),
    expert_of_row=np.array([0, 1]),
    vectors=np.eye(2, dtype=np.float32),
    texts=("x", "y"),
    embedder="toy",
    text_format="instance",
)
QUERIES = Queries("t/1", ())
PATH = "encoder/layers/attention/query"


def stacked(lora_a, lora_b):
    """Experts with one projection of one layer: [E, I, R] and [E, R, O]."""
    leaves = {"lora_a": np.asarray(lora_a, np.float32)[:, None]}
    leaves["lora_b"] = np.asarray(lora_b, np.float32)[:, None]
    return {"encoder": {"layers": {"attention": {"query": leaves}}}}


# ΔW of the first is (3, 4)' (1, 0), of rank 1; of the second 2 in one direction and 1 in the other, its
# factors turned by a matrix that ΔW does not know.
TURN = np.array([[1.0, 1.0], [-1.0, 1.0]])
FIRST = np.array([[3.0, 0.0], [4.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 0.0]])
SECOND = np.diag([1.0, 2.0]) @ TURN, np.linalg.inv(TURN)
PARAMS = stacked([FIRST[0], SECOND[0]], [FIRST[1], SECOND[1]])


def test_arrows_prototype_of_rank_one_is_the_direction_of_its_lora_a():
    gate = arrow(QUERIES, INDEX, params=PARAMS, k=1)
    prototypes = np.abs(gate.prototypes[PATH][:, 0, :, 0])
    np.testing.assert_allclose(prototypes, [[0.6, 0.8], [0.0, 1.0]], atol=1e-6)
    assert (gate.task, gate.router, gate.experts, gate.k, gate.similarity) == (
        "t/1", "arrow", ("a/1", "b/1"), 1, "norm",
    )  # fmt: skip


def test_arrows_prototypes_are_those_of_a_decomposition_of_the_whole_change():
    rng = np.random.default_rng(0)
    lora_a, lora_b = rng.normal(size=(2, 7, 3)), rng.normal(size=(2, 3, 5))
    found = arrow(QUERIES, INDEX, params=stacked(lora_a, lora_b)).prototypes[PATH][:, 0, :, 0]
    expected = np.linalg.svd(lora_a @ lora_b)[0][:, :, 0]
    np.testing.assert_allclose(np.abs((found * expected).sum(axis=-1)), [1.0, 1.0], rtol=1e-5)


def test_an_expert_that_changes_nothing_attracts_no_token():
    fresh = stacked(np.ones((2, 4, 2)), np.zeros((2, 2, 3)))
    for router in (arrow, spectr):
        assert not router(QUERIES, INDEX, params=fresh).prototypes[PATH].any()


def test_spectrs_score_is_the_length_of_what_the_expert_reads():
    x = np.array([1.0, -2.0])
    prototypes = spectr(QUERIES, INDEX, params=PARAMS).prototypes[PATH]
    scores = np.linalg.norm(x @ prototypes[:, 0], axis=-1)
    # The first reads along (3, 4) / 5 alone, the second everything.
    np.testing.assert_allclose(scores, [1.0, np.sqrt(5.0)], rtol=1e-5)


def test_spectrs_experts_weigh_alike_and_their_changes_are_their_own():
    gate = spectr(QUERIES, INDEX, params=PARAMS, k=1)
    assert (gate.weighting, gate.mixing) == ("uniform", "factors")
    vectors, rest = gate.factors[PATH]
    np.testing.assert_allclose(
        (vectors @ rest)[:, 0], [FIRST[0] @ FIRST[1], SECOND[0] @ SECOND[1]], atol=1e-5
    )


def test_spectr_depends_on_the_changes_and_not_on_how_they_are_factored():
    rng = np.random.default_rng(1)
    lora_a, lora_b = rng.normal(size=(2, 7, 3)), rng.normal(size=(2, 3, 5))
    turns = rng.normal(size=(2, 3, 3))
    x = rng.normal(size=(4, 7)).astype(np.float32)

    def add(lora_a, lora_b):
        own = stacked(lora_a, lora_b)
        tree = spectr(QUERIES, INDEX, params=own, k=2).make_tree(own)["encoder"]["layers"]["attention"]
        return gating.gated_delta(x, jax.tree.map(lambda leaf: leaf[0], tree["query"]))

    found = add(lora_a, lora_b)
    turned = add(lora_a @ turns, np.linalg.inv(turns) @ lora_b)
    np.testing.assert_allclose(turned, found, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(add(-lora_a, -lora_b), found, rtol=1e-4, atol=1e-5)


def test_average_activations_prototype_is_the_standardised_mean():
    means = {PATH: np.array([[[3.0, 5.0]], [[7.0, 7.0]]])}
    gate = average_activation(QUERIES, INDEX, activations=means, temperature=0.5)
    assert (gate.similarity, gate.k) == ("standard_dot", 2)
    # (-1, 1), over √2 inputs and half a temperature; a constant has no direction.
    expected = np.sqrt(2.0) * np.array([[-1.0, 1.0], [0.0, 0.0]])
    np.testing.assert_allclose(gate.prototypes[PATH][:, 0, :, 0], expected, rtol=1e-4)


def test_a_temperature_divides_scores_and_an_excluded_expert_serves_no_token():
    gate = arrow(QUERIES, INDEX, params=PARAMS, temperature=4.0, exclude=["a"])
    whole = arrow(QUERIES, INDEX, params=PARAMS)
    np.testing.assert_allclose(gate.prototypes[PATH] * 4, whole.prototypes[PATH], rtol=1e-6)
    assert (gate.allowed.tolist(), whole.allowed.tolist()) == ([False, True], [True, True])


def test_what_cannot_be_gated_is_refused():
    with pytest.raises(UserError, match="'mlp', got ia3_in"):
        gates.collect_lora_factors({"mlp": {"ia3_in": np.ones((2, 1, 3))}})
    with pytest.raises(UserError, match=f"2 experts.*got 1 at {PATH!r}"):
        arrow(QUERIES, INDEX, params=stacked([FIRST[0]], [FIRST[1]]))
    with pytest.raises(UserError, match=r"got 2 and 0\.0"):
        arrow(QUERIES, INDEX, params=PARAMS, k=2, temperature=0.0)
    with pytest.raises(UserError, match="'sums'"):
        arrow(QUERIES, INDEX, params=PARAMS, mixing="sums")
    with pytest.raises(UserError, match=f"at {PATH!r}"):
        average_activation(QUERIES, INDEX, activations={PATH: np.full((2, 1, 2), np.nan)})
    with pytest.raises(UserError, match="got none"):
        average_activation(QUERIES, INDEX, activations={})
