"""`elm evaluate` as a command: a mistake is one sentence, before a base is read."""

import numpy as np
import pytest

from elm_jax import cli
from elm_jax.library.store import Library
from elm_jax.records import Expert, ExpertSpec


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
        ("arrow", "Router 'arrow' compares LoRA experts, but 'a/b' is a 'bottleneck' expert"),
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
