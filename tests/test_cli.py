"""The command line: quick to answer, one sentence for a mistake, JSON for scripts."""

import json
import subprocess
import sys

import pytest

from elm_jax import cli


def error_of(capsys, *arguments):
    """Runs a command with a mistake in it; returns its one error."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    output = capsys.readouterr()
    assert stop.value.code == 2
    assert output.out == ""
    assert "Traceback" not in output.err
    return output.err


def test_importing_the_command_line_imports_nothing_heavy():
    heavy = ("jax", "numpy", "tensorflow", "seqio", "gin", "scipy", "flax", "yaml", "jinja2", "safetensors")
    code = f"import sys, elm_jax, elm_jax.cli; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_an_unknown_task_is_answered_with_the_nearest(capsys):
    error = error_of(capsys, "tasks", "show", "mini_sentiment_film/after a film")
    assert "'mini_sentiment_film/after the film'" in error


def test_an_unknown_group_is_one_sentence(capsys):
    assert "'trian'" in error_of(capsys, "tasks", "list", "--group", "trian")


def test_a_missing_run_is_one_sentence(capsys, tmp_path):
    error = error_of(capsys, "experts", "list", "--run", str(tmp_path / "none"))
    assert str(tmp_path / "none") in error


def test_a_missing_data_folder_is_one_sentence(capsys, tmp_path):
    error = error_of(
        capsys, "tasks", "preview", "hindu_knowledge/zero_shot", "--data-dir", str(tmp_path / "none")
    )
    assert str(tmp_path / "none") in error


def test_an_output_that_cannot_be_written_is_one_sentence(capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    error = error_of(capsys, "quickstart", "--out", str(tmp_path / "file" / "out"))
    assert str(tmp_path / "file") in error


def test_a_missing_recipe_is_answered_with_the_nearest(capsys):
    error = error_of(capsys, "run", "--gin_file=gin/recipes/dream_to_story_close.gin")
    assert "gin/recipes/dream_to_story_cloze.gin" in error


def test_a_macro_that_nothing_reads_is_answered_with_the_nearest(capsys):
    recipe = "--gin_file=gin/recipes/dream_to_story_cloze.gin"
    error = error_of(capsys, "run", recipe, "--gin.TRIAN_STEPS=5")
    assert "'TRIAN_STEPS'" in error
    assert "'TRAIN_STEPS'" in error


def test_missing_data_of_a_recipe_is_one_sentence(capsys, tmp_path):
    recipe = "--gin_file=gin/recipes/dream_to_story_cloze.gin"
    places = [f"--gin.{name}='{tmp_path / name}'" for name in ("DATA_DIR", "TEMPLATES_DIR", "MODEL_DIR")]
    error = error_of(capsys, "run", recipe, *places)
    assert error.count("\n") == 1
    assert str(tmp_path) in error


def test_a_recipe_names_the_macros_that_it_requires(capsys):
    error = error_of(capsys, "run", "--gin_file=gin/runs/pipeline.gin")
    assert "EVAL_TASKS, MIXTURE_OR_TASK_NAME" in error


def test_gin_that_does_not_parse_is_one_sentence(capsys, tmp_path):
    (tmp_path / "broken.gin").write_text("TRAIN_STEPS = = 5\n")
    assert "broken.gin" in error_of(capsys, "run", f"--gin_file={tmp_path / 'broken.gin'}")


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
    output = capsys.readouterr().out
    assert "* " in output
    assert "-> " in output
    assert "288 rows" in output


def test_the_doctor_names_devices_and_versions(capsys):
    cli.app(["doctor", "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert found["backend"] == "cpu"
    assert found["packages"]["jax"]
