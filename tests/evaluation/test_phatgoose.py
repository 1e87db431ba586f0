"""PHATGOOSE from gates to a report: gates are trained beside a library's experts, and route their tokens."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from elm_jax.cli import main
from elm_jax.errors import UserError
from elm_jax.evaluation import evaluate
from elm_jax.evaluation import scorer_selection as choosing
from elm_jax.evaluation.config import EvaluationConfig
from elm_jax.experts.library import Library
from elm_jax.records import Gates
from elm_jax.training import gates, trainer
from elm_jax.training.config import CheckpointConfig, LossConfig
from tests.run_fixtures import BOTTLENECK, LORA, TRAINED, add_expert

CONFIG = gates.gate_config(steps=3, batch_size=4, learning_rate=0.1)


@pytest.fixture(scope="module")
def run(make_run):
    return make_run(LORA)


@pytest.fixture(scope="module")
def library(run):
    return Library.open(run.workspace.library)


@pytest.fixture(scope="module")
def experts_before(library):
    return bytes_of(library)


@pytest.fixture(scope="module")
def trained(run, experts_before):
    return gates.train_gates(run, config=CONFIG)


def bytes_of(library):
    files = [file for file in Path(str(library.root)).rglob("*") if file.is_file()]
    return {str(file): file.read_bytes() for file in files if file.name != "gates.safetensors"}


def run_command(*arguments):
    """Runs `elm train --gates` and returns its exit code."""
    with pytest.raises(SystemExit) as end:
        main(["train", "--gates", *arguments])
    return end.value.code


def never(*arguments, **options):
    raise AssertionError("gates were trained again")


def test_experts_without_gates_are_refused_with_what_to_do(make_run, unseen):
    with pytest.raises(UserError, match="elm train --gates"):
        evaluate.evaluate(make_run(LORA, keyed=False), unseen, EvaluationConfig(methods=["phatgoose"]))


def test_every_expert_gets_gates_and_stays_byte_for_byte_as_it_was(library, experts_before, trained):
    assert trained == sorted(TRAINED)
    assert bytes_of(library) == experts_before
    for expert in TRAINED:
        found = library.load_gates(expert)
        owners = {path.rpartition("/")[0] for path in library.spec(expert).paths}
        assert set(found.vectors) == owners
        assert all(np.abs(gate).max() > 0 for gate in found.vectors.values())
        assert (found.recipe["steps"], found.recipe["rows"]) == (3, 12)
    assert library.verify() == []


def test_gates_that_are_there_are_told_and_not_trained_again(run, trained, monkeypatch):
    monkeypatch.setattr(trainer, "train", never)
    told = io.StringIO()
    monkeypatch.setattr(run.stages, "console", Console(file=told, width=1000))
    assert gates.train_gates(run, [TRAINED[0]], CONFIG) == [TRAINED[0]]
    assert f"trained already for {TRAINED[0]}" in told.getvalue()
    with pytest.raises(UserError, match="another steps and warmup"):
        gates.train_gates(run, config=gates.gate_config(steps=40, batch_size=4, learning_rate=0.1))


def test_phatgoose_is_evaluated_and_its_scores_depend_on_the_gates(run, library, trained, unseen):
    config = EvaluationConfig(methods=["base", "phatgoose", "first=phatgoose:k=1"], queries=4)
    outcome = evaluate.evaluate(run, unseen, config)
    assert {row.method for row in outcome.report.rows} >= {"base", "phatgoose", "first"}
    scorers = choosing.load_selection(run.workspace).scorers
    before = scorers["phatgoose"][unseen[0].id]
    assert before != scorers["first"][unseen[0].id]
    found = library.load_gates(TRAINED[0])
    turned = {path: -gate for path, gate in found.vectors.items()}
    library.write_gates(TRAINED[0], Gates(turned, found.checksum, found.recipe))
    evaluate.evaluate(run, unseen, config)
    assert choosing.load_selection(run.workspace).scorers["phatgoose"][unseen[0].id] != before
    library.write_gates(TRAINED[0], found)


def test_the_command_trains_gates_of_experts_that_lack_them(make_run, capsys):
    own = make_run(LORA, keyed=False)
    command = ["--run", str(own.workspace.root), "--steps", "2", "--batch-size", "4"]
    assert run_command(*command, TRAINED[0]) == 0
    assert capsys.readouterr().out.split("\n")[-2] == TRAINED[0]
    library = Library.open(own.workspace.library)
    assert [library.has_gates(expert) for expert in TRAINED] == [True, False, False, False]
    first = library.load_gates(TRAINED[0]).vectors
    assert run_command(*command) == 0
    assert all(library.has_gates(expert) for expert in TRAINED)
    for path, gate in library.load_gates(TRAINED[0]).vectors.items():
        np.testing.assert_array_equal(gate, first[path])
    assert run_command(*command, "--seed", "1", "--restart", TRAINED[0]) == 0
    again = library.load_gates(TRAINED[0]).vectors
    assert any((gate != first[path]).any() for path, gate in again.items())


def test_parts_of_a_command_train_gates_of_experts_of_their_own(make_run, capsys):
    own = make_run(LORA, keyed=False)
    command = ["--run", str(own.workspace.root), "--steps", "1", "--batch-size", "2", "--part"]
    assert run_command(*command, "2/2") == 0
    library = Library.open(own.workspace.library)
    every = sorted(TRAINED)
    assert sorted(capsys.readouterr().out.split("\n")[-3:-1]) == every[1::2]
    assert [library.has_gates(expert) for expert in every] == [False, True, False, True]
    assert run_command(*command, "1/2") == 0
    assert all(library.has_gates(expert) for expert in every)
    assert run_command(*command, "5/5") == 2


def test_what_has_no_gates_is_refused(make_run):
    run = make_run(LORA, keyed=False)
    add_expert(run, TRAINED[0], *BOTTLENECK)
    with pytest.raises(UserError, match=f"'{TRAINED[0]}' of kind 'bottleneck'"):
        gates.train_gates(run, [TRAINED[0]])
    for changes in (
        {"checkpoint": CheckpointConfig(validate_every=1)},
        {"loss": LossConfig(mc_loss=1.0)},
        {"answers": "each"},
    ):
        with pytest.raises(UserError, match="validate_every"):
            gates.train_gates(run, config=replace(gates.gate_config(), **changes))
    assert run_command("--kind", "ia3", "--run", str(run.workspace.root)) == 2
