"""`elm evaluate` as a command: a mistake is one sentence, before a base is read."""

import numpy as np
import pytest
from etils import epath

from elm_jax import cli
from elm_jax.cli import output
from elm_jax.evaluation.evaluate import EvaluationResult
from elm_jax.experts.library import Library
from elm_jax.records import Expert, ExpertSpec
from elm_jax.reporting.records import GeneratedResult
from elm_jax.reporting.summary import ReportInputs, build_report


def error_of(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", *arguments])
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


@pytest.fixture
def library(tmp_path):
    """A run's directory with one bottleneck expert and no base at all."""
    tree = {"encoder": {"layers": {"mlp_adapter": {"down": {"kernel": np.zeros((1, 4, 2), np.float32)}}}}}
    spec = ExpertSpec("a/b", "bottleneck", "x", ("encoder/layers/mlp_adapter/down/kernel",), ("a",), 1)
    Library.open(tmp_path / "library", create=True).add(Expert(spec, tree))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("method", "named"),
    [
        ("reo", "No router named 'reo'"),
        ("roe:experts=2+tise", "Did you mean 'ties'"),
        ("arrow", "router 'arrow', got 'a/b' of kind 'bottleneck'"),
        ("uniform+ties", "'bottleneck' experts, got 'ties'"),
    ],
)
def test_an_impossible_method_is_refused_before_the_base_is_read(capsys, library, method, named):
    error = error_of(capsys, "mini-unseen", "--run", library, "--method", method)
    assert named in error
    assert error.count("\n") == 1


def test_a_recipe_needs_its_tasks_and_its_run(capsys):
    error = error_of(capsys, "--gin_file=gin/runs/evaluate.gin")
    assert "EVAL_TASKS, MODEL_DIR" in error


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["mini-unseen"], "names of tasks"),
        (["--method", "roe"], "--method"),
        (["--limit", "3"], "--limit"),
        (["--run", "elsewhere"], "--run"),
    ],
)
def test_a_flag_that_the_recipe_decides_is_refused_beside_it(capsys, flags, named):
    error = error_of(capsys, "--gin_file=gin/runs/evaluate.gin", *flags)
    assert named in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("flag", ["--limit", "--queries", "--merged", "--batch-tokens"])
def test_numbers_below_one_are_refused_with_their_flag(capsys, library, flag):
    error = error_of(capsys, "mini-unseen", "--run", library, flag, "0")
    assert flag.strip("-").replace("-", "_") in error
    assert "got 0" in error
    assert error.count("\n") == 1


def test_an_outcome_of_written_answers_alone_is_shown(capsys):
    row = GeneratedResult("roe", "news", "title", 8, "bleu", 12.5, 10.0, 15.0, False)
    report = build_report(ReportInputs(generated=[row]))
    output.print_outcome(EvaluationResult(report, {"html": epath.Path("report.html")}, {"write": 1.0}))
    said = capsys.readouterr().out
    assert "12.5" in said
    assert said.endswith("in all 1.0.\nReport: report.html\n")
