"""The launcher takes T5X's scripts by name, and refuses others in one sentence; test_gin.py runs them."""

import importlib.util

import pytest

from elm_jax import storage
from elm_jax.t5x import launch


def error_of(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        launch.main(list(arguments))
    said = capsys.readouterr()
    assert (stop.value.code, said.out) == (2, "")
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize(("arguments", "got"), [((), "got nothing"), (("trian",), "got 'trian'")])
def test_a_script_is_required_first(capsys, arguments, got):
    assert f"train, eval, infer, {got}" in error_of(capsys, *arguments)


def test_a_missing_t5x_is_one_sentence(capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "t5x" else find(name))
    assert "Expected T5X" in error_of(capsys, "train")


def test_the_gin_files_are_on_the_launchers_search_path():
    assert (storage.SHIPPED / "gin" / "t5x" / "prompt_expert.gin").is_file()
