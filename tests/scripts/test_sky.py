"""SkyPilot's task files: their commands are elm's, and SkyPilot reads them if it is installed."""

import json
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
REQUIRED |= {"VOCABULARY": "gs://bucket/spiece.model"}
STUB = """#!/bin/bash
trap 'exit 0' TERM
printf '<%s>' "$@" >> "$HOME/called"
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
    own = {"HOME": str(home), "PATH": os.environ["PATH"], "SKYPILOT_NODE_RANK": "0"}
    values = {**task["envs"], **REQUIRED, **own, **environment}
    return subprocess.Popen(["bash", script], env=values, cwd=ROOT, start_new_session=True)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_its_values_are_declared_and_its_scripts_parse(file):
    task = yaml.safe_load(file.read_text())
    wanted = {name for name, value in task["envs"].items() if value is None}
    assert "MODEL_DIR" in wanted
    assert wanted <= set(REQUIRED)
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[part], text=True, check=True)
    for name in task["envs"]:
        assert f"${name}" in task["setup"] + task["run"]


def test_a_recipe_is_trained_with_its_macros(tmp_path):
    assert start(ROOT / "scripts/sky/train.yaml", tmp_path, FLAGS="--gin.A=1 --gin.B=2").wait(timeout=30) == 0
    assert (tmp_path / "called").read_text() == (
        "<train><--multiprocess><--wait><--gin_file=gin/recipes/prompt_expert.gin><--gin.MODEL_DIR='gs://bucket/xl'>"
        "<--gin.INITIAL_CHECKPOINT_PATH='gs://bucket/base'><--gin.DATA_DIR='gs://bucket/data'>"
        "<--gin.A=1><--gin.B=2>"
    )


def test_a_sweep_trains_a_part_of_a_groups_experts(tmp_path):
    assert start(ROOT / "scripts/sky/sweep.yaml", tmp_path, PART="2/4").wait(timeout=30) == 0
    assert (tmp_path / "called").read_text() == (
        "<train><--multiprocess><--wait><--gin_file=gin/recipes/all_prompt_experts.gin><--part=2/4>"
        "<--gin.MODEL_DIR='gs://bucket/xl'><--gin.MIXTURE_OR_TASK_NAME='train'>"
        "<--gin.INITIAL_CHECKPOINT_PATH='gs://bucket/base'><--gin.DATA_DIR='gs://bucket/data'>"
    )


@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_first_host_embeds_keys_and_all_evaluate(tmp_path, rank):
    file = ROOT / "scripts/sky/evaluate.yaml"
    assert start(file, tmp_path, SKYPILOT_NODE_RANK=rank).wait(timeout=30) == 0
    said = (tmp_path / "called").read_text()
    assert said == "<index><--wait><--run><gs://bucket/xl>" * (rank == "0") + (
        "<evaluate><--multiprocess><--wait><--gin_file=gin/recipes/evaluate_unseen.gin><--gin.MODEL_DIR='gs://bucket/xl'>"
    )


def test_t5x_trains_a_recipe_of_ours(tmp_path):
    assert start(ROOT / "scripts/sky/t5x.yaml", tmp_path).wait(timeout=30) == 0
    assert (tmp_path / "called").read_text() == (
        "<-m><elm_jax.t5x.launch><train><--multiprocess><--gin_file=gin/t5x/prompt_expert.gin>"
        "<--gin.MODEL_DIR='gs://bucket/xl'><--gin.INITIAL_CHECKPOINT_PATH='gs://bucket/base'>"
        "<--gin.VOCABULARY_FILE='gs://bucket/spiece.model'><--gin.DATA_DIR='gs://bucket/data'>"
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


PARSE = """
import importlib.util, json, sys
if importlib.util.find_spec("sky") is None:
    sys.exit(77)
import sky
from sky.utils import yaml_utils
for file, values in json.loads(sys.argv[1]):
    task = sky.Task.from_yaml_config(yaml_utils.read_yaml(file), env_overrides=values)
    (resources,) = task.resources
    print(*resources.accelerators, resources.use_spot)
"""


def test_skypilot_reads_them():
    """In a process of its own, which may be of another environment: SkyPilot pins much that elm_jax needs."""
    python = os.environ.get("SKYPILOT_PYTHON", sys.executable)
    tasks = [yaml.safe_load(file.read_text()) for file in FILES]
    given = [[name for name in REQUIRED if name in task["envs"]] for task in tasks]
    asked = [
        (str(file), [(name, REQUIRED[name]) for name in names])
        for file, names in zip(FILES, given, strict=True)
    ]
    done = subprocess.run([python, "-c", PARSE, json.dumps(asked)], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("needs SkyPilot; SKYPILOT_PYTHON may name the Python of another environment")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{task['resources']['accelerators']} True" for task in tasks]
