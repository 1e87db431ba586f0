"""The launcher: T5X's scripts by name, and one sentence where there is none. test_gin.py runs them."""

import importlib.util

import pytest

from elm_jax import storage
from elm_jax.t5x import launch


def told(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        launch.main(list(arguments))
    said = capsys.readouterr()
    assert (stop.value.code, said.out) == (2, "")
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize(("arguments", "came"), [((), "nothing came"), (("trian",), "'trian' came")])
def test_a_script_is_wanted_first(capsys, arguments, came):
    assert f"wanted first, train, eval, infer, then its flags, but {came}" in told(capsys, *arguments)


def test_t5x_that_is_absent_is_one_sentence(capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "t5x" else find(name))
    assert "T5X is wanted, but it is not installed" in told(capsys, "train")


def test_the_gin_files_lie_where_the_launcher_looks():
    assert (storage.SHIPPED / "gin" / "t5x" / "prompt_expert.gin").is_file()
