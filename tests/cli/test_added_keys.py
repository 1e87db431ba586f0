"""Experts that were made elsewhere get keys in one step, and routers find them."""

import json
from pathlib import Path

import numpy as np
import pytest

from elm_jax import cli
from elm_jax.experts.library import Library
from tests import run_fixtures

REVIEWS = Path(__file__).parents[1] / "tasks" / "own_reviews" / "reviews.yaml"
GOOD = "reviews/is it good"


@pytest.fixture
def elm(capsys):
    """Runs `elm`; returns its exit code, and what it printed to either channel."""

    def run(*arguments):
        code = 0
        try:
            cli.main([str(each) for each in arguments])
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def run(make_run, tmp_path, elm):
    """A run with two experts that have keys, and in `made` a third, of somebody else, that has none."""
    run = make_run(experts=run_fixtures.TRAINED[:2])
    run_fixtures.add_expert(run, GOOD, *run_fixtures.BOTTLENECK, seed=9)
    assert elm("experts", "export", GOOD, tmp_path / "made", "--run", run.workspace.root)[0] == 0
    Library.open(run.workspace.library).remove(GOOD)
    return run


def keys_of(run):
    return Library.open(run.workspace.library).load_keys(GOOD)


def route(elm, run):
    return elm("route", "mini_size_suitcase", "--run", run.workspace.root, "--json")


def test_inputs_of_a_file_become_keys_and_routers_work(elm, run, tmp_path):
    texts = ["The room was clean .", "Breakfast was cold ."]
    (tmp_path / "inputs.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    root = run.workspace.root
    code, _, said = elm("experts", "add", tmp_path / "made", "--run", root, "--keys", tmp_path / "inputs.txt")
    assert code == 0, said
    assert keys_of(run).texts == tuple(texts)
    assert np.isfinite(keys_of(run).vectors).all()
    assert route(elm, run)[0] == 0


def test_inputs_of_its_task_become_keys(elm, run, tmp_path):
    root = run.workspace.root
    code, _, said = elm("experts", "add", tmp_path / "made", "--run", root, "--tasks", REVIEWS)
    assert code == 0, said
    rows = [json.loads(line) for line in REVIEWS.with_suffix(".jsonl").read_text().splitlines()]
    assert set(keys_of(run).texts) == {f"{row['text']} Is this good?" for row in rows}
    assert route(elm, run)[0] == 0


def test_an_id_that_is_no_task_of_the_file_ends_in_what_to_give(elm, run, tmp_path):
    flags = ("--id", "mine/0", "--run", run.workspace.root, "--tasks", REVIEWS)
    code, _, said = elm("experts", "add", tmp_path / "made", *flags)
    assert code == 2
    assert all(word in said for word in ("'mine/0'", "DATASET/PROMPT", "--keys FILE"))


def test_what_routing_says_of_an_expert_without_keys_is_the_command_that_works(elm, run, tmp_path):
    root = run.workspace.root
    assert elm("experts", "add", tmp_path / "made", "--run", root)[0] == 0
    code, _, said = route(elm, run)  # among the others
    assert code == 0
    assert "elm index --expert ID --keys FILE" in " ".join(said.split())
    assert "elm index --expert ID --keys FILE" in " ".join(elm("index", "--run", root)[2].split())
    (tmp_path / "inputs.txt").write_text("The room was clean .", encoding="utf-8")
    flags = ("--expert", GOOD, "--keys", tmp_path / "inputs.txt", "--json")
    code, told, _ = elm("index", "--run", root, *flags)
    assert (code, json.loads(told)) == (0, [GOOD])
    assert route(elm, run)[0] == 0


@pytest.mark.parametrize("content", ["", "\n \n", None])
def test_a_file_without_an_input_adds_no_expert(elm, run, tmp_path, content):
    if content is not None:
        (tmp_path / "inputs.txt").write_text(content)
    root = run.workspace.root
    code, _, said = elm("experts", "add", tmp_path / "made", "--run", root, "--keys", tmp_path / "inputs.txt")
    assert (code, said.count("\n")) == (2, 1)
    assert GOOD not in Library.open(run.workspace.library)


def test_a_file_without_its_task_adds_no_expert(elm, run, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(REVIEWS.read_text().replace("is it good", "was it bad"))
    (tmp_path / "reviews.jsonl").write_text(REVIEWS.with_suffix(".jsonl").read_text())
    flags = ("--run", run.workspace.root, "--tasks", other)
    code, _, said = elm("experts", "add", tmp_path / "made", *flags)
    assert (code, said.count("\n")) == (2, 1)
    assert GOOD in said
    assert GOOD not in Library.open(run.workspace.library)
