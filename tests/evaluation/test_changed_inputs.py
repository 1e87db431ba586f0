"""Inputs that change after something was made of them: every later verb refuses them or does them again."""

import json
import os
import re
from pathlib import Path

import pytest

from elm_jax.errors import UserError
from elm_jax.evaluation import report as reports
from elm_jax.evaluation.config import EvaluationConfig
from elm_jax.evaluation.evaluate import evaluate
from elm_jax.experts.library import Library
from elm_jax.merging.merge import merge
from elm_jax.routing.index import index
from elm_jax.routing.route import route
from elm_jax.session import opening
from elm_jax.session.workspace import Workspace
from elm_jax.telemetry.progress import Stages
from elm_jax.tokenizers import sentencepiece
from elm_jax.training.train import train
from tests.training_configs import train_config

CONFIG = train_config(steps=1, batch_size=4, rate=1e-3, kind="bottleneck", options={"width": 2})
TASKS = """
datasets:
  lights:
    jsonl: {train: lights.jsonl}
    prompts:
      p: {answer_choices: "on ||| off", jinja: "Is the {{text}} lit? ||| {{answer_choices[label]}}"}
  lamps:
    jsonl: {test: lamps.jsonl}
    prompts:
      p: {answer_choices: "on ||| off", jinja: "Is the {{text}} lit? ||| {{answer_choices[label]}}"}
"""


def rows(name):
    return [{"text": f"{name} {number}", "label": number % 2} for number in range(40)]


def write(folder, name, made):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "tasks.yaml").write_text(TASKS)
    for name in ("lights", "lamps"):
        write(folder, name, rows(name))
    return folder


@pytest.fixture(scope="module")
def root(make_run, folder):
    """A run with an expert, its keys and an evaluation."""
    root = make_run(experts=(), keyed=False, rows=40).workspace.root
    run = opened(root, folder)
    train(run, "lights", CONFIG)
    index(run, size=4)
    evaluate(run, "lamps", EvaluationConfig(methods=["roe"], queries=4))
    return root


@pytest.fixture(autouse=True)
def restored(folder, root):
    """Puts every input back after a test."""
    files = [*folder.iterdir(), root / "base" / opening.VOCABULARY_FILE, root / "run.json"]
    before = {file: file.read_bytes() for file in files}
    yield
    for file, content in before.items():
        file.write_bytes(content)


def opened(root, folder):
    return opening.open_run(root, task_files=[folder / "tasks.yaml"])


def flip(folder, name):
    write(folder, name, [{**row, "label": row["label"] ^ (at < 12)} for at, row in enumerate(rows(name))])


def reword(folder, name):
    file = folder / "tasks.yaml"
    file.write_text(re.sub(rf"({name}:.*?)Is the", r"\1See the", file.read_text(), count=1, flags=re.DOTALL))


def choose_otherwise(folder, name):
    file = folder / "tasks.yaml"
    pattern = rf"({name}:.*?)\|\|\| off"
    file.write_text(re.sub(pattern, r"\1||| out", file.read_text(), count=1, flags=re.DOTALL))


CHANGES = [
    (flip, "label of 12 of 40 rows"),
    (reword, "input of 40 of 40 rows"),
    (choose_otherwise, "choices of 40 of 40 rows"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_training_and_indexing_refuse_rows_that_changed_by_name(root, folder, change, said):
    change(folder, "lights")
    with pytest.raises(UserError, match=said):
        train(opened(root, folder), "lights", CONFIG)
    with pytest.raises(UserError, match=said):
        index(opened(root, folder))
    with pytest.raises(UserError, match=said):
        index(opened(root, folder), rebuild=True)


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_an_evaluation_scores_rows_that_changed_again_and_says_why(root, folder, change, said, capsys):
    config = EvaluationConfig(methods=["roe"], queries=4)
    before = evaluate(opened(root, folder), "lamps", config)
    capsys.readouterr()
    change(folder, "lamps")
    assert any(said in line for line in reports.describe_changed_tasks(Workspace.open(root)))
    after = evaluate(opened(root, folder), "lamps", config)
    told = capsys.readouterr().err
    assert said in told
    assert "lamps/p is scored again" in told
    if change is flip:  # of 12 of 40 rows the other choice is right
        right = [
            row.accuracy * 40 for row in (*before.report.rows, *after.report.rows) if row.method == "base"
        ]
        assert abs(right[0] - right[1]) <= 12
    assert reports.describe_changed_tasks(Workspace.open(root)) == []


def test_an_input_that_was_touched_and_not_changed_is_current(root, folder, capsys):
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes())
        os.utime(file, (1, 1))
    # A line more in the file, which JSON lines skip: other bytes, and the same rows.
    with (folder / "lights.jsonl").open("a") as stream:
        stream.write("\n")
    run = opened(root, folder)
    assert train(run, "lights", CONFIG) == ["lights/p"]
    assert index(run) == []
    before = sorted(Path(root / "scores").rglob("*.jsonl"))
    times = [file.stat().st_mtime_ns for file in before]
    evaluate(run, "lamps", EvaluationConfig(methods=["roe"], queries=4))
    assert [file.stat().st_mtime_ns for file in before] == times
    assert "scored again" not in capsys.readouterr().err


def rotate(root):
    """Rotates the pieces of a vocabulary: as many ids, of other words."""
    from sentencepiece import sentencepiece_model_pb2

    file = root / "base" / opening.VOCABULARY_FILE
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(file.read_bytes())
    pieces = [piece.piece for piece in proto.pieces[3:]]
    for piece, other in zip(proto.pieces[3:], [*pieces[1:], pieces[0]], strict=True):
        piece.piece = other
    file.write_bytes(proto.SerializeToString())


def test_another_vocabulary_is_refused_by_every_verb_that_uses_an_expert(root, folder, capsys):
    before = sentencepiece.load(root / "base" / opening.VOCABULARY_FILE, opening.EXTRA_IDS)
    rotate(root)
    run = opened(root, folder)
    assert run.tokenizer.size == before.size
    assert run.tokenizer.fingerprint != before.fingerprint
    for use in (
        lambda: train(run, "lights", CONFIG),
        lambda: index(run),
        lambda: route(run, "lamps"),
        lambda: merge(run, ["lights/p"]),
        lambda: evaluate(run, "lamps", EvaluationConfig(methods=["roe"], queries=4)),
    ):
        with pytest.raises(UserError, match="vocabulary"):
            use()
    capsys.readouterr()
    # The base alone belongs to no vocabulary but the run's, so it is scored again.
    evaluate(run, "lamps", EvaluationConfig(methods=["base"]))
    assert "vocabulary" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"truncate": 3}, "truncate"),
        ({"limit": 20}, "rows"),
        ({"input_eos": False}, "input_eos"),
    ],
)
def test_training_refuses_other_settings_of_rows_by_name(root, folder, fields, said):
    opened(root, folder)
    run = opening.open_run(root, overrides=fields)
    with pytest.raises(UserError, match=said):
        train(run, "lights", CONFIG)


def test_an_expert_of_the_first_versions_is_used_and_said_to_be_unknown(root, folder, capsys):
    run = opened(root, folder)
    library = Library.open(root / "library")
    expert, keys = library.load_expert("lights/p"), library.load_keys("lights/p")
    file = root / "library" / "lights" / "p" / "expert.json"
    whole = file.read_bytes()
    value = json.loads(whole)
    for name in ("made_of", "vocabulary"):
        del value["recipe"][name]
    try:
        file.write_text(json.dumps(value))
        flip(folder, "lights")
        assert train(opened(root, folder), "lights", CONFIG) == ["lights/p"]
        assert "Not known to be trained on these rows" in capsys.readouterr().err
    finally:
        file.write_bytes(whole)
    assert expert.spec.recipe["vocabulary"] == run.tokenizer.fingerprint == keys.made_of["vocabulary"]
    assert list(keys.made_of["rows"]) == ["lights/p"]


def test_a_selection_carries_the_digest_of_its_queries(root, folder):
    first = route(opened(root, folder), "lamps", queries=4)[0].rows
    assert first == route(opened(root, folder), "lamps", queries=4)[0].rows
    reword(folder, "lamps")
    assert first != route(opened(root, folder), "lamps", queries=4)[0].rows


def test_nothing_is_printed_of_changes_where_there_are_none(root, folder, capsys):
    evaluate(opened(root, folder), "lamps", EvaluationConfig(methods=["roe"], queries=4))
    capsys.readouterr()
    evaluate(opened(root, folder), "lamps", EvaluationConfig(methods=["roe"], queries=4))
    assert "again" not in capsys.readouterr().err
    assert isinstance(opened(root, folder).stages, Stages)
