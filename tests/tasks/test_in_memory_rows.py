"""Rows in memory: lists, DataFrames and datasets of Hugging Face are tasks as files are."""

import subprocess
import sys

import numpy as np
import pytest

import elm_jax
from elm_jax.errors import UserError
from elm_jax.tasks import in_memory_rows

ROWS = [{"text": "rex", "label": 1}, {"text": "tom", "label": 0}]
PROMPTS = {"kind": ("{{text}} ||| {{answer_choices[label]}}", "cat ||| dog")}


def frame(rows):
    return pytest.importorskip("pandas", reason="pandas is not installed").DataFrame(rows)


def hub_dataset(rows):
    return pytest.importorskip("datasets", reason="datasets is not installed").Dataset.from_list(rows)


def as_generator(rows):
    return lambda split: iter(rows)


@pytest.mark.parametrize("made", [list, tuple, frame, hub_dataset, as_generator])
def test_rows_of_every_form_give_the_same_examples(made):
    specs = elm_jax.define_task("pets", rows=made(ROWS), prompts=PROMPTS)
    assert [spec.id for spec in specs] == ["pets/kind"]
    found = elm_jax.examples("pets/kind")
    assert [(each.input, each.target) for each in found] == [("rex", "dog"), ("tom", "cat")]


def test_rows_by_split_are_trained_on_and_evaluated(tmp_path):
    rows = {"train": ROWS, "validation": frame(ROWS[:1])}
    (spec,) = elm_jax.define_task("pets", rows=rows, prompts=PROMPTS, evaluate="validation")
    assert len(elm_jax.examples(spec, "train")) == 2
    assert len(elm_jax.examples(spec, "validation")) == 1


def test_what_json_has_not_becomes_what_it_has():
    rows = [{"n": np.int64(3), "x": np.float32(0.5), "many": np.arange(2), "none": float("nan")}]
    function, _ = in_memory_rows.read_rows(rows, ())
    assert function("train") == [{"n": 3, "x": 0.5, "many": [0, 1], "none": None}]


@pytest.mark.parametrize("rows", [[], "text", 5, ["a"], {"train": []}])
def test_other_values_are_refused_with_the_form_that_is_wanted(rows):
    with pytest.raises(UserError, match="list of dicts"):
        elm_jax.define_task("pets", rows=rows, prompts=PROMPTS)


def test_a_change_of_rows_is_noticed():
    first, _ = in_memory_rows.read_rows(ROWS, ())
    second, _ = in_memory_rows.read_rows([{**ROWS[0], "label": 0}, ROWS[1]], ())
    again, _ = in_memory_rows.read_rows(frame(ROWS), ())
    assert first.digest != second.digest
    assert first.digest == again.digest


def test_rows_in_the_place_of_tasks_are_answered_with_how_to_define_one():
    code = f"from elm_jax.data.task_selection import select_tasks; select_tasks({ROWS})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)  # without type checks
    assert "UserError: Expected a task by name or spec, got dict. Fix: define a task" in done.stderr
