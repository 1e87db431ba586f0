"""The command line: quick to answer, one sentence for a mistake, JSON for scripts."""

import json
import subprocess
import sys

import pytest

from elm_jax import cli


def told(capsys, *arguments):
    """Runs a command that a user got wrong; returns what it said."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    said = capsys.readouterr()
    assert stop.value.code == 2
    assert said.out == ""
    assert "Traceback" not in said.err
    return said.err


def test_importing_the_command_line_imports_nothing_heavy():
    heavy = ("jax", "numpy", "tensorflow", "seqio", "gin", "scipy", "flax", "yaml", "jinja2", "safetensors")
    code = f"import sys, elm_jax, elm_jax.cli; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_an_unknown_task_is_answered_with_the_nearest(capsys):
    said = told(capsys, "tasks", "show", "mini_sentiment_film/after a film")
    assert "Did you mean 'mini_sentiment_film/after the film'" in said


def test_an_unknown_group_is_one_sentence(capsys):
    assert "No group named 'trian'" in told(capsys, "tasks", "list", "--group", "trian")


def test_a_run_that_is_not_there_is_one_sentence(capsys, tmp_path):
    said = told(capsys, "experts", "list", "--run", str(tmp_path / "none"))
    assert "no directory is there. Make one with `elm quickstart" in said


def test_a_missing_data_folder_is_one_sentence(capsys, tmp_path):
    said = told(capsys, "tasks", "preview", "hindu_knowledge/zero_shot", "--data-dir", str(tmp_path / "none"))
    assert f"A directory of datasets is wanted at '{tmp_path / 'none'}', but no directory is there" in said


def test_an_output_that_cannot_be_written_is_one_sentence(capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    said = told(capsys, "quickstart", "--out", str(tmp_path / "file" / "out"))
    assert "cannot be written" in said


def test_a_recipe_that_is_not_there_is_answered_with_the_nearest(capsys):
    said = told(capsys, "run", "--gin_file=gin/recipes/dream_to_story_close.gin")
    assert "Did you mean gin/recipes/dream_to_story_cloze.gin" in said


def test_a_macro_that_nothing_reads_is_answered_with_the_nearest(capsys):
    recipe = "--gin_file=gin/recipes/dream_to_story_cloze.gin"
    said = told(capsys, "run", recipe, "--gin.TRIAN_STEPS=5")
    assert "No macro named 'TRIAN_STEPS'" in said
    assert "'TRAIN_STEPS'" in said


def test_data_that_a_recipe_does_not_find_is_one_sentence(capsys, tmp_path):
    recipe = "--gin_file=gin/recipes/dream_to_story_cloze.gin"
    places = [f"--gin.{name}='{tmp_path / name}'" for name in ("DATA_DIR", "TEMPLATES_DIR", "MODEL_DIR")]
    said = told(capsys, "run", recipe, *places)
    assert said.count("\n") == 1
    assert str(tmp_path) in said


def test_a_recipe_without_its_tasks_says_what_it_wants(capsys):
    said = told(capsys, "run", "--gin_file=gin/runs/pipeline.gin")
    assert "EVAL_TASKS, MIXTURE_OR_TASK_NAME" in said


def test_gin_that_does_not_parse_is_one_sentence(capsys, tmp_path):
    (tmp_path / "broken.gin").write_text("TRAIN_STEPS = = 5\n")
    assert "does not read" in told(capsys, "run", f"--gin_file={tmp_path / 'broken.gin'}")


def test_t5x_flags_become_gin_bindings():
    words = ["run", "--gin.MODEL_DIR='a=b'"]
    assert cli.expand_gin_flags(words) == ["run", "--gin_bindings=MODEL_DIR = 'a=b'"]


def test_tasks_are_listed_as_json(capsys):
    cli.app(["tasks", "list", "--group", "mini-unseen", "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 12
    assert found[0].keys() == {"id", "group", "dataset", "config", "prompt", "metric"}


def test_a_preview_shows_input_choices_and_target(capsys):
    cli.app(["tasks", "preview", "mini_size_animal/than a dog", "--rows", "1"], standalone_mode=False)
    said = capsys.readouterr().out
    assert "* " in said
    assert "-> " in said
    assert "288 rows" in said


def test_the_doctor_names_devices_and_versions(capsys):
    cli.app(["doctor", "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert found["backend"] == "cpu"
    assert found["packages"]["jax"]
