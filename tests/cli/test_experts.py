"""`elm experts add` and `export`: out of one run's library and into another's, in words that a user reads."""

import jax
import numpy as np
import pytest

from elm_jax import cli
from elm_jax.library.store import Library
from elm_jax.models import experts as ex
from elm_jax.models import paths
from elm_jax.models.sizes import size
from elm_jax.models.t5 import init_params
from elm_jax.records import Expert, ExpertSpec
from elm_jax.runs.workspace import Workspace
from elm_jax.weights import elm


@pytest.fixture
def elm_says(capsys):
    """Runs `elm experts`; returns its exit code, and what it printed to either channel."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main(["experts", *map(str, arguments)])
        said = capsys.readouterr()
        return stop.value.code, said.out, said.err

    return run


@pytest.fixture(scope="module")
def base():
    config = size("tiny", vocab_size=24, emb_dim=8, num_heads=2, head_dim=5, mlp_dim=14)
    return elm.of(config, init_params(jax.random.key(0), config))


@pytest.fixture
def runs(base, tmp_path):
    """Two runs of one base; the first has an expert."""
    for name in ("one", "two"):
        elm.save(Workspace.open(tmp_path / name, create=True).base, base)
    tree = jax.tree.map(np.asarray, ex.init("lora", jax.random.key(1), base.params))
    spec = ExpertSpec("a/b", "lora", base.fingerprint, tuple(paths.flatten(tree)), ("a",), 7)
    Library.open(tmp_path / "one" / "library", create=True).add(Expert(spec, tree))
    return tmp_path


def test_an_expert_goes_from_one_run_to_another(runs, elm_says):
    assert elm_says("export", "a/b", runs / "out", "--run", runs / "one") == (0, f"{runs / 'out'}\n", "")
    code, said, _ = elm_says("add", runs / "out", "--run", runs / "two")
    assert (code, said) == (0, "a/b: lora, 7 steps, trained on a.\n")
    assert Library.open(runs / "two" / "library").ids() == ("a/b",)


def test_a_second_of_its_id_is_refused_unless_it_is_to_replace(runs, elm_says):
    elm_says("export", "a/b", runs / "out", "--run", runs / "one")
    code, said, told = elm_says("add", runs / "out", "--run", runs / "one")
    assert (code, said) == (2, "")
    assert "should have no expert 'a/b' yet" in told
    assert elm_says("add", runs / "out", "--run", runs / "one", "--replace")[0] == 0


def test_what_is_no_expert_is_one_sentence(runs, elm_says):
    code, _, told = elm_says("add", runs / "none", "--id", "a/b", "--run", runs / "one")
    assert code == 2
    assert told.count("\n") == 1
    assert "no directory is there" in told
