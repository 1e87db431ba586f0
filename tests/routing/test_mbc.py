"""MBC: LoRA experts with like parameters make one group, whose keys elect it together."""

import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.routing.inputs import KeyIndex, Queries
from elm_jax.routing.mbc import cluster_experts, embed_experts, mbc

NAMES = ("a/1", "b/1", "c/1", "d/1", "e/1")
# Two directions, whatever the length: a, c and e one way, b and d the other.
DIRECTIONS = np.array([[1.0, 0.0], [0.0, 1.0], [3.0, 0.3], [0.1, 2.0], [0.5, 0.0]])
INDEX = KeyIndex(
    experts=NAMES,
    datasets=(("x",), ("y",), ("z",), ("y",), ("x",)),
    expert_of_row=np.arange(5),
    vectors=np.array([[1.0, 0, 0], [0, 1, 0], [0.9, 0, 0], [0, 0, 1], [0.8, 0, 0]], np.float32),
    texts=NAMES,
    embedder="toy",
    text_format="instance",
)


def points(order=range(5), **options):
    rows = DIRECTIONS[list(order)].astype(np.float32)
    params = {"mlp": {"wo": {"lora_a": rows[:, None, :, None], "lora_b": rows[:, None, None, :]}}}
    return embed_experts(params, **{"sparsity": 0.0, **options})


def ask(*vectors):
    rows = tuple(f"r{row}" for row in range(len(vectors)))
    return Queries("t/1", rows, vectors=np.array(vectors, np.float32), embedder="toy", text_format="instance")


def test_experts_of_one_direction_make_one_group_whatever_their_size():
    groups = (("a/1", "c/1", "e/1"), ("b/1", "d/1"))
    assert cluster_experts(points(), NAMES, 2) == cluster_experts(points(dimensions=2), NAMES, 2) == groups


def test_points_are_of_length_one_and_their_products_cosines():
    flat = np.concatenate([DIRECTIONS, DIRECTIONS], axis=1)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    np.testing.assert_allclose(points() @ points().T, flat @ flat.T, atol=1e-5)


def test_of_an_expert_only_what_is_above_its_quantile_counts():
    # Of c, (3, 0.3) twice, the upper half of the values is (3, 0) twice: the direction of a.
    found = points(sparsity=0.5)
    np.testing.assert_allclose(found[0] @ found[2], 1.0, rtol=1e-5)
    assert points()[0] @ points()[2] < 0.999


def test_many_experts_are_grouped_as_few_are():
    rng = np.random.default_rng(0)
    centres, owner = rng.normal(size=(4, 200)), rng.integers(0, 4, 120)
    rows = (centres[owner] + rng.normal(0, 0.3, (120, 200))).astype(np.float32)[:, None, :, None]
    found = embed_experts({"wo": {"lora_a": rows, "lora_b": rows[:, :, :1]}})
    groups = cluster_experts(found, list(map(str, range(120))), 4)
    assert {frozenset(group) for group in groups} == {
        frozenset(map(str, np.flatnonzero(owner == own))) for own in range(4)
    }


def test_the_order_of_experts_changes_no_group():
    order = [3, 4, 1, 0, 2]
    found = cluster_experts(points(order), [NAMES[expert] for expert in order], 2)
    assert [frozenset(name[0] for name in group) for group in found] == [frozenset("bd"), frozenset("ace")]


def test_one_group_has_all_and_as_many_as_directions_have_one_each():
    assert cluster_experts(points(), NAMES, 1) == (NAMES,)
    # a and e have one direction.
    assert cluster_experts(points(), NAMES, 4) == (("a/1", "e/1"), ("b/1",), ("c/1",), ("d/1",))


def test_the_group_with_most_votes_is_chosen_whole_though_another_expert_has_more():
    # b has two votes, and a, c and e one each: three of their group.
    selection = mbc(
        ask([0, 1, 0], [0, 1, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]), INDEX, parameter_points=points(), groups=2
    )
    assert selection.weights == pytest.approx({"a/1": 1 / 3, "c/1": 1 / 3, "e/1": 1 / 3})
    assert selection.votes == {"a/1": 3, "b/1": 2}
    assert selection.router == "mbc"


def test_an_excluded_expert_is_not_chosen_with_its_group():
    selection = mbc(ask([1, 0, 0]), INDEX, parameter_points=points(), groups=2, exclude=["x"])
    assert selection.weights == {"c/1": 1.0}


def test_a_number_of_clusters_that_makes_no_sense_is_refused():
    with pytest.raises(UserError, match="1 to 5 clusters, got 6"):
        cluster_experts(points(), NAMES, 6)
    with pytest.raises(UserError, match="4 experts, got 5"):
        cluster_experts(points(), NAMES[:4], 2)
