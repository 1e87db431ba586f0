"""The map of keys and queries: a plane worked out in another way, and what it does not depend on."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_jax import schema
from elm_jax.errors import UserError
from elm_jax.reporting.records import KeyMap
from elm_jax.routing import key_map
from elm_jax.routing.inputs import KeyIndex, Queries
from elm_jax.routing.key_map import draw_key_map


def make_index(vectors_of):
    """The index of experts whose keys are given by name."""
    vectors = np.concatenate(list(vectors_of.values())).astype(np.float32)
    sizes = [len(own) for own in vectors_of.values()]
    return KeyIndex(
        experts=tuple(vectors_of),
        datasets=(("d",),) * len(vectors_of),
        expert_of_row=np.repeat(np.arange(len(sizes)), sizes),
        vectors=vectors,
        texts=("",) * sum(sizes),
        embedder="e",
        text_format="f",
    )


def make_queries(task, vectors, text_format="f"):
    return Queries(task, ("row",) * len(vectors), (), np.asarray(vectors, np.float32), "e", text_format)


@pytest.fixture(scope="module")
def made():
    rng = np.random.default_rng(3)
    keys = {
        name: rng.normal(size=(size, 6)) for name, size in (("b/1", 3), ("a/x, y", 5), ("c/ä", 2), ("a/1", 4))
    }
    queries = [make_queries(task, rng.normal(size=(4, 6))) for task in ("t/2", "s/1", "t/1")]
    return keys, queries


def points(groups):
    return {group.name: np.array([group.x, group.y]).T for group in groups}


def test_places_are_projections_onto_the_main_components_of_the_keys_of_unit_length(made):
    keys, queries = made
    drawn = draw_key_map(make_index(keys), queries)
    unit = {name: own / np.linalg.norm(own, axis=1)[:, None] for name, own in keys.items()}
    every = np.concatenate(list(unit.values()))
    values, vectors = np.linalg.eigh(np.cov(every.T))
    axes = vectors[:, [-1, -2]]
    axes = axes * np.where(axes.max(axis=0) >= -axes.min(axis=0), 1, -1)
    assert drawn.shares == pytest.approx(values[[-1, -2]] / values.sum(), abs=1e-4)
    found = points(drawn.keys)
    assert list(found) == sorted(keys)
    for name, own in unit.items():
        np.testing.assert_allclose(found[name], (own - every.mean(axis=0)) @ axes, atol=1e-4)
    by_task = {each.task: np.asarray(each.vectors, np.float64) for each in queries}
    of_t = np.concatenate([by_task["t/1"], by_task["t/2"]])
    of_t = of_t / np.linalg.norm(of_t, axis=1)[:, None]
    np.testing.assert_allclose(points(drawn.queries)["t"], (of_t - every.mean(axis=0)) @ axes, atol=1e-4)
    assert (drawn.key_count, drawn.query_count) == (14, 12)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(40)), st.integers(1, 12))
def test_the_order_of_experts_changes_nothing(order, size):
    rng = np.random.default_rng(size)
    keys = {f"e/{number}": rng.normal(size=(1 + number % size, 5)) for number in range(40)}
    queries = [make_queries("t/1", rng.normal(size=(2, 5)))]
    turned = {name: keys[name] for name in (f"e/{number}" for number in order)}
    assert draw_key_map(make_index(turned), queries) == draw_key_map(make_index(keys), queries)


@pytest.mark.parametrize(("experts", "most", "least"), [(8, 25, 25), (150, 2, 1), (300, 1, 0)])
def test_of_many_keys_every_expert_has_as_many_as_the_others(experts, most, least):
    rng = np.random.default_rng(0)
    keys = {f"e/{number}": rng.normal(size=(40, 5)) for number in range(experts)}
    drawn = draw_key_map(make_index(keys), [make_queries("t/1", rng.normal(size=(900, 5)))])
    counts = {group.name: len(group.x) for group in drawn.keys}
    assert sum(counts.values()) == key_map.MOST_POINTS == sum(len(group.x) for group in drawn.queries)
    found = [counts.get(name, 0) for name in keys]
    assert (max(found), min(found)) == (most, least)
    assert (drawn.key_count, drawn.query_count) == (40 * experts, 900)


def test_keys_without_a_plane_and_queries_of_another_form_give_no_map(made):
    keys, queries = made
    line = {"a/1": np.array([[1.0, 0, 0], [1, 0, 0]]), "b/1": np.array([[0, 1.0, 0]])}
    assert draw_key_map(make_index(line), [make_queries("t/1", np.ones((1, 3)))]) is None
    assert draw_key_map(make_index(keys), []) is None
    assert draw_key_map(make_index(keys), [replace(each, text_format="raw") for each in queries]) is None


def test_a_map_comes_back_from_json_and_one_with_half_a_point_does_not(made):
    def read(value):
        return schema.parse(json.dumps(value).encode(), KeyMap, what="a map", fix="draw it again")

    drawn = draw_key_map(make_index(made[0]), made[1])
    value = asdict(drawn)
    assert read(value) == drawn
    for wrong in ((), value["keys"][0]["x"][1:], (*value["keys"][0]["x"][1:], float("inf"))):
        value["keys"][0]["x"] = wrong
        with pytest.raises(UserError, match="finite number"):
            read(value)
