"""SkyPilot's task files: their commands are elm's, and SkyPilot reads them if it is installed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "scripts" / "sky").glob("*.yaml"))
REQUIRED = {"MODEL_DIR": "gs://bucket/xl", "BASE": "gs://bucket/base", "DATA_DIR": "gs://bucket/data"}
STUB = """#!/bin/bash
trap 'exit 0' TERM
printf '<%s>' "$@" > "$HOME/called"
while [ -f "$HOME/hold" ]; do sleep 0.05; done
"""


def start(file, home, **environment):
    """Starts the `run` of a task file as SkyPilot would, with a stand-in for what `setup` installs."""
    task = yaml.safe_load(file.read_text())
    for name in ("elm", "python"):
        program = home / "elm" / "bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(STUB)
        program.chmod(0o755)
    script = home / "run.sh"
    script.write_text(task["run"])
    values = {**task["envs"], **REQUIRED, **environment, "HOME": str(home), "PATH": os.environ["PATH"]}
    return subprocess.Popen(["bash", script], env=values, cwd=ROOT, start_new_session=True)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_its_values_are_declared_and_its_scripts_parse(file):
    task = yaml.safe_load(file.read_text())
    assert {name for name, value in task["envs"].items() if value is None} == set(REQUIRED)
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[part], text=True, check=True)
    for name in task["envs"]:
        assert f"${name}" in task["setup"] + task["run"]


def test_a_recipe_is_trained_with_its_macros(tmp_path):
    assert start(ROOT / "scripts/sky/train.yaml", tmp_path, FLAGS="--gin.A=1 --gin.B=2").wait(timeout=30) == 0
    assert (tmp_path / "called").read_text() == (
        "<train><--multiprocess><--gin_file=gin/recipes/prompt_expert.gin><--gin.MODEL_DIR='gs://bucket/xl'>"
        "<--gin.INITIAL_CHECKPOINT_PATH='gs://bucket/base'><--gin.DATA_DIR='gs://bucket/data'>"
        "<--gin.A=1><--gin.B=2>"
    )


def test_a_part_is_trained_by_the_sweep(tmp_path):
    file = ROOT / "scripts/sky/sweep.yaml"
    assert start(file, tmp_path, KIND="datasets", PART="2/4").wait(timeout=30) == 0
    said = (tmp_path / "called").read_text()
    assert said.startswith(
        "<scripts/sweep.py><datasets><--part=2/4><--model-dir=gs://bucket/xl><--><--multiprocess>"
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_preempted_job_ends_with_a_code_that_restarts_it(file, tmp_path):
    (tmp_path / "hold").touch()
    process = start(file, tmp_path)
    for _ in range(200):
        if (tmp_path / "called").exists():
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    assert 143 in yaml.safe_load(file.read_text())["resources"]["job_recovery"]["recover_on_exit_codes"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_skypilot_reads_it(file):
    """In a process of its own, which may be of another environment: SkyPilot pins much that elm_jax needs."""
    python = os.environ.get("SKYPILOT_PYTHON", sys.executable)
    code = (
        "import importlib.util, sys\n"
        "if importlib.util.find_spec('sky') is None: sys.exit(77)\n"
        "import sky\n"
        "from sky.utils import yaml_utils\n"
        "values = [word.split('=', 1) for word in sys.argv[2:]]\n"
        "task = sky.Task.from_yaml_config(yaml_utils.read_yaml(sys.argv[1]), env_overrides=values)\n"
        "(resources,) = task.resources\n"
        "print(*resources.accelerators, resources.use_spot)\n"
    )
    values = [f"{name}={value}" for name, value in REQUIRED.items()]
    done = subprocess.run([python, "-c", code, file, *values], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("needs SkyPilot; SKYPILOT_PYTHON may name the Python of another environment")
    assert done.returncode == 0, done.stderr
    accelerators = yaml.safe_load(file.read_text())["resources"]["accelerators"]
    assert done.stdout.split() == [accelerators, "True"]
