"""`elm evaluate` as a command: a mistake is one sentence, before a base is read."""

import numpy as np
import pytest
from etils import epath

from elm_jax import cli
from elm_jax.cli import shown
from elm_jax.evaluation.evaluate import EvaluationResult
from elm_jax.experts.library import Library
from elm_jax.records import Expert, ExpertSpec
from elm_jax.reporting.records import GeneratedResult
from elm_jax.reporting.summary import ReportInputs, build_report


def told(capsys, *arguments):
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
    ("method", "said"),
    [
        ("reo", "No router named 'reo'"),
        ("roe:experts=2+tise", "Did you mean 'ties'"),
        ("arrow", "router 'arrow', got 'a/b' of kind 'bottleneck'"),
        ("uniform+ties", "'ties' cannot: it works on ΔW"),
    ],
)
def test_a_method_that_cannot_be_is_refused_before_a_base_is_looked_for(capsys, library, method, said):
    err = told(capsys, "mini-unseen", "--run", library, "--method", method)
    assert said in err
    assert err.count("\n") == 1


def test_a_recipe_wants_its_tasks_and_its_run(capsys):
    err = told(capsys, "--gin_file=gin/runs/evaluate.gin")
    assert "EVAL_TASKS, MODEL_DIR" in err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["mini-unseen"], "but the names of tasks came too"),
        (["--method", "roe"], "but --method came too"),
        (["--limit", "3"], "but --limit came too"),
        (["--run", "elsewhere"], "but --run came too"),
    ],
)
def test_what_a_recipe_would_not_hear_of_is_refused_beside_it(capsys, flags, said):
    err = told(capsys, "--gin_file=gin/runs/evaluate.gin", *flags)
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("flag", ["--limit", "--queries", "--merged", "--batch-tokens"])
def test_numbers_below_one_are_refused_with_their_flag(capsys, library, flag):
    err = told(capsys, "mini-unseen", "--run", library, flag, "0")
    assert err == f"elm: A number of at least 1 is wanted for {flag}, but 0 came.\n"


def test_an_outcome_of_written_answers_alone_is_shown(capsys):
    row = GeneratedResult("roe", "news", "title", 8, "bleu", 12.5, 10.0, 15.0, False)
    report = build_report(ReportInputs(generated=[row]))
    shown.show_outcome(EvaluationResult(report, {"html": epath.Path("report.html")}, {"write": 1.0}))
    said = capsys.readouterr().out
    assert "12.5" in said
    assert said.endswith("in all 1.0.\nReport: report.html\n")
