"""Frames: what verbs return is a list, and a table for pandas."""

import dataclasses

import pytest

import elm_jax
from elm_jax.evaluation.score import TextScores
from elm_jax.experts.convert import ConversionResult
from elm_jax.frames import Records
from elm_jax.records import Expert, ExpertSpec, Keys, Selection
from elm_jax.routing.inputs import KeyIndex, Queries

pandas = pytest.importorskip("pandas", reason="pandas is not installed")


def test_records_are_lines_and_ids_a_column():
    table = elm_jax.task_specs("mini").to_pandas()
    assert list(table["id"]) == [spec.id for spec in elm_jax.task_specs("mini")]
    assert Records(["a/b", "c/d"]) == ["a/b", "c/d"]
    assert list(Records(["a/b", "c/d"]).to_pandas()["id"]) == ["a/b", "c/d"]


def test_an_expert_and_the_examples_of_a_task_are_tables_too():
    spec = ExpertSpec("a/b", "lora", "f", ("x",), ("a",), 3)
    assert Expert(spec, {}).to_pandas()["steps"][0] == 3
    for record in (
        spec,
        Selection("a/b", "roe", {}, {}, (), ()),
        ConversionResult("model", "hf", "d", 7, "f"),
    ):
        assert list(record.to_pandas().columns) == [field.name for field in dataclasses.fields(record)]
    found = elm_jax.examples("mini_size_animal/than a dog", source=elm_jax.Source(limit=2))
    assert list(found.to_pandas()["input"]) == [each.input for each in found]


def test_records_with_many_values_have_short_reprs():
    np = pytest.importorskip("numpy")
    names = tuple(f"data/{number}" for number in range(400))
    vectors = np.zeros((400, 8), np.float32)
    for record in (
        Selection("a/b", "roe", {"c/d": 1.0}, dict.fromkeys(names, 1), names, tuple((n, 0.5) for n in names)),
        Keys(vectors, names, "t5", "instance"),
        Queries("a/b", names, names, vectors, "t5"),
        KeyIndex(names, ((),) * 400, np.arange(400), vectors, names, "t5", "instance"),
        Expert(ExpertSpec("a/b", "lora", "f", names, names, 1), {"x": vectors}),
        TextScores(names, (("no", "yes"),) * 400, (vectors[0, :2],) * 400),
    ):
        assert len(repr(record)) < 120
