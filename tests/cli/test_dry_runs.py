"""Dry runs: whatever verb has one, and however a run and its base are named, nothing is written."""

import json
import shlex
import sys
from pathlib import Path

import gin
import pytest
import typer

from elm_jax import cli
from tests.run_fixtures import LORA

TASK = """\
import elm_jax

elm_jax.define_task(
    "mine", jsonl="rows.jsonl",
    prompts={"good": ("{{text}} ||| {{answer_choices[label]}}", "no ||| yes")}, evaluate="train",
)
"""
RECIPE = (
    "--gin_file=gin/runs/train.gin --gin.MIXTURE_OR_TASK_NAME=mine.py --gin.TRAIN_STEPS=2 "
    "--gin.MODEL_DIR=new --gin.INITIAL_CHECKPOINT_PATH={base}"
)
CASES = {
    "train": [
        "mine.py --run {run} --kind lora --steps 2",
        "mine.py --run new --base {base} --steps 2 --track tensorboard",
        "--gates --run {run} --steps 2",
        RECIPE,
    ],
    "evaluate": [
        "mini_size_suitcase --run {run} --method roe:experts=2 --method uniform+ties --oracle --name kept",
        "mine.py --run new --base {base} --method base",
        "--gin_file=gin/runs/evaluate.gin --gin.EVAL_TASKS=mini_size_suitcase --gin.MODEL_DIR={run} "
        "\"--gin.METHODS=('roe',)\"",
    ],
}


@pytest.fixture(scope="module")
def run(make_run):
    return make_run(LORA).workspace


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory to stand in, with a task in Python, and a cache of its own."""
    (tmp_path / "mine.py").write_text(TASK)
    (tmp_path / "rows.jsonl").write_text('{"text": "the dog", "label": 1}\n' * 8)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ELM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    monkeypatch.setattr("sys.path", [*sys.path])
    yield tmp_path
    sys.modules.pop("mine", None)
    gin.clear_config()


def contents(*roots):
    files = (file for root in roots for file in Path(root).rglob("*"))
    return {file: file.is_file() and file.read_bytes() for file in files}


def test_every_verb_with_a_dry_run_is_tried():
    verbs = typer.main.get_command(cli.app).commands
    dry = {verb for verb, each in verbs.items() if any("--dry-run" in param.opts for param in each.params)}
    assert dry == set(CASES)


@pytest.mark.parametrize(
    ("verb", "words"), [(verb, words) for verb, cases in CASES.items() for words in cases]
)
def test_a_dry_run_says_what_would_be_done_and_writes_nothing(run, place, capsys, verb, words):
    before = contents(run.root, place)
    filled = shlex.split(words.format(run=run.root, base=run.base))
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, *filled, "--dry-run", "--json", "-q"])
    said = capsys.readouterr()
    assert stop.value.code == 0, said.err
    assert json.loads(said.out)
    assert contents(run.root, place) == before
