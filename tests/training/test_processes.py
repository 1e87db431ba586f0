"""Processes: `elm train` that is killed or told to stop, and several that train together.

They are real ones, on real tasks, with a base so small that starting takes most of their time.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from elm_jax.data import task_selection
from elm_jax.experts.library import Library
from elm_jax.models import paths
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import init_params
from elm_jax.session import settings
from elm_jax.session.workspace import Workspace
from elm_jax.tasks import rendering
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.telemetry import jsonl_log
from elm_jax.tokenizers import sentencepiece
from elm_jax.weights import base_model, elm
from tests.xla_flags import xla_flags

pytestmark = pytest.mark.usefixtures("ctrl_c")

WITHOUT = Path(__file__).parents[1] / "without_tensorflow"

TASKS = ("mini_size_animal", "mini_sentiment_film", "mini_taxonomy_kind")  # of two prompts each


@pytest.fixture(scope="session")
def make_run(tmp_path_factory):
    """Makes a run's directory with a small base that nobody trained, and the vocabulary of the tasks."""
    texts = [
        text
        for spec in task_selection.select_tasks(TASKS)
        for example in rendering.examples(spec, "train").examples[:50]
        for text in (example.input, example.target)
    ]

    def make(name):
        root = tmp_path_factory.mktemp(name)
        workspace = Workspace.open(root, create=True)
        workspace.base.mkdir()
        tokenizer = sentencepiece.train(
            texts, workspace.base / "vocabulary.model", 200, kind="word", extra_ids=16
        )
        config = find_config(
            "tiny", vocab_size=-(-tokenizer.size // 64) * 64, emb_dim=32, head_dim=8, mlp_dim=48
        )
        elm.save(workspace.base, base_model.make_base(config, init_params(jax.random.key(0), config)))
        settings.save_run_settings(workspace, None, Source(), Lengths())
        return root

    return make


def start(root, *flags, steps=12, tasks=TASKS, **options):
    """Starts `elm train` on the tasks' first 40 rows."""
    words = ["train", *tasks, "--run", str(root), "--rate", "1e-3", "--steps", str(steps)]
    return start_command(root, [*words, "--batch-size", "4", "--limit", "40", *flags], **options)


def start_command(root, words, devices=1, program=("-m", "elm_jax.cli")):
    """Starts a command of `elm`."""
    command = [sys.executable, *program, *words]
    own = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(devices)}
    # What one test compiles the next need not. Training imports no TensorFlow: here it would fail to.
    own |= {"JAX_COMPILATION_CACHE_DIR": str(root.parent / "compiled"), "PYTHONPATH": str(WITHOUT)}
    environment = {**os.environ, **own}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def job(root, count, *more, **options):
    """Starts the processes of one job."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    flags = ["--multiprocess", "--coordinator_address", f"localhost:{port}", "--process_count", str(count)]
    flags += more
    return [start(root, *flags, "--process_index", str(index), **options) for index in range(count)]


def ended(processes):
    """Waits for processes; returns their exit codes and what they said."""
    said = [process.communicate(timeout=300) for process in processes]
    return [process.returncode for process in processes], said


def experts(root):
    library = Library.open(root / "library")
    return {name: paths.flatten(library.load_expert(name).params) for name in library.ids()}


def losses(root):
    return {
        (record["expert"], record["step"]): record["loss"]
        for record in jsonl_log.read_journal(root / "logs" / "training.jsonl")
        if record["kind"] == "step"
    }


@pytest.fixture(scope="module")
def alone(make_run):
    root = make_run("alone")
    codes, said = ended([start(root)])
    assert codes == [0], said
    return root


def test_several_processes_train_what_one_does(alone, make_run):
    root = make_run("of3")
    codes, said = ended(job(root, 3))
    assert codes == [0] * 3, said
    found, wanted = experts(root), experts(alone)
    assert found.keys() == wanted.keys()
    for name, params in wanted.items():
        for path, value in params.items():
            np.testing.assert_allclose(found[name][path], value, atol=1e-5, err_msg=f"{name} {path}")
    assert losses(root).keys() == losses(alone).keys()
    for key, loss in losses(alone).items():
        assert losses(root)[key] == pytest.approx(loss, abs=1e-5)


COUNTING = """
import json, sys
from elm_jax.cli import main
from elm_jax.data.ragged import RaggedTokens
from elm_jax.training import job_loading

lists, join_rows = [], job_loading.join_rows

class CountedTokens(RaggedTokens):
    def __getitem__(self, index):
        self.read.append(int(index))
        return super().__getitem__(index)

def join_counted_rows(parts):
    rows = join_rows(parts)
    counted = CountedTokens(rows.tokens, rows.offsets)
    object.__setattr__(counted, "read", [])
    lists.append(counted)
    return counted

job_loading.join_rows = join_counted_rows
try:
    main()
finally:
    index = sys.argv[sys.argv.index("--process_index") + 1]
    run = sys.argv[sys.argv.index("--run") + 1]
    with open(f"{run}/read{index}.json", "w") as file:
        json.dump([rows.read for rows in lists], file)
"""


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["mini_size_animal/than a dog"], id="rows"),
        pytest.param(list(TASKS[:1]), id="experts", marks=pytest.mark.nightly),
    ],
)
def test_each_of_two_processes_reads_its_own_rows_alone(make_run, names):
    root = make_run(f"counted{len(names[0])}")
    # Ten steps of four rows are one epoch over forty.
    codes, said = ended(job(root, 2, steps=10, tasks=names, program=("-c", COUNTING)))
    assert codes == [0, 0], said
    first, second = (json.loads((root / f"read{index}.json").read_text()) for index in range(2))
    experts = len(task_selection.select_tasks(names))
    assert len(first) == len(second) == 2 * experts  # inputs and targets of each
    for mine, others in zip(first, second, strict=True):
        assert sorted(mine + others) == list(range(40))  # each once, by one of them
        assert sorted(map(len, (mine, others))) == ([20, 20] if experts == 1 else [0, 40])
    assert sum(map(len, first)) == sum(map(len, second))


def count_steps(root):
    """Returns how many steps a run has told of."""
    file = root / "logs" / "training.jsonl"
    return sum('"step"' in line for line in file.read_text().splitlines()) if file.exists() else 0


def wait_for_rounds(root, count=2):
    """Waits until a run has told of some steps."""
    for _ in range(1500):
        if count_steps(root) > count:
            return
        time.sleep(0.2)
    raise AssertionError("the run told of no steps")


def test_a_process_that_is_killed_ends_the_job_with_a_message(make_run):
    root = make_run("killed")
    processes = job(root, 2, steps=100_000)
    wait_for_rounds(root)
    processes[1].kill()
    (code, _), ((_, said), _) = ended(processes)
    assert code == 1
    assert "elm: process 0: another process of the job ended" in said
    assert "Run the same command in all processes again" in said


def test_a_signal_to_one_process_has_all_of_them_save_and_end_well(make_run):
    root = make_run("stopped")
    processes = job(root, 2, steps=100_000)
    wait_for_rounds(root)
    processes[1].send_signal(signal.SIGTERM)
    codes, said = ended(processes)
    assert codes == [143, 143], said
    told = [next(line for line in err.splitlines() if line.startswith("elm:")) for _, err in said]
    assert told[0] == told[1]
    assert told[0].startswith("elm: Stopped after batch ")
    (directory,) = (root / "checkpoints").iterdir()
    at = int(told[0].split()[4].rstrip("."))
    assert at in {int(each.name) for each in directory.iterdir() if each.name.isdigit()}
    assert json.loads((directory / "identity.json").read_text())["run"]["base"]


@pytest.mark.nightly
def test_two_processes_that_split_a_network_stop_together_go_on_and_train_what_one_does(make_run):
    """All parameters are trained: each process has half of them, and saves its half."""
    flags, options = ("--kind", "full"), {"steps": 60, "tasks": ["mini_size_animal/than a dog"]}
    whole, torn = make_run("full_by_one"), make_run("full_by_two")
    codes, said = ended([start(whole, *flags, **options)])
    assert codes == [0], said
    processes = job(torn, 2, *flags, **options)
    wait_for_rounds(torn, count=0)  # it tells every tenth step
    processes[0].send_signal(signal.SIGTERM)
    codes, said = ended(processes)
    assert codes == [143, 143], said
    codes, said = ended(job(torn, 2, *flags, **options))
    assert codes == [0, 0], said
    journal = jsonl_log.read_journal(torn / "logs" / "training.jsonl")
    told = [record["step"] for record in journal if record["kind"] == "step"]
    assert told == sorted(set(told))  # the second job began where the first ended
    found, wanted = experts(torn), experts(whole)
    assert found.keys() == wanted.keys()
    for name, params in wanted.items():
        for path, value in params.items():
            np.testing.assert_allclose(found[name][path], value, atol=1e-4, err_msg=f"{name} {path}")


def files(root):
    return {
        str(file.relative_to(root)): file.read_bytes()
        for file in (root / "library").rglob("*")
        if file.is_file()
    }


@pytest.mark.nightly
def test_a_run_killed_at_four_random_moments_ends_with_the_same_bytes(make_run):
    whole, torn = make_run("whole"), make_run("torn")
    steps = 100
    began = time.monotonic()
    codes, said = ended([start(whole, steps=steps)])
    assert codes == [0], said
    lasted = time.monotonic() - began
    draw, kills = random.Random(0), 0
    while kills < 4:
        process = start(torn, steps=steps)
        try:
            process.communicate(timeout=draw.uniform(0.2, 0.7) * lasted)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
        else:  # it came to its end between two kills: the rest happens to another
            assert process.returncode == 0
            assert files(torn) == files(whole)
            torn = make_run("torn_again")
    codes, said = ended([start(torn, steps=steps)])
    assert codes == [0], said
    assert files(torn) == files(whole)
    assert list((torn / "checkpoints").iterdir()) == []


@pytest.mark.nightly
def test_a_run_told_to_stop_saves_and_ends_well_and_the_next_goes_on_from_there(make_run):
    whole, stopped = make_run("not_stopped"), make_run("stopped_once")
    steps = 60
    assert ended([start(whole, steps=steps)])[0] == [0]
    process = start(stopped, steps=steps)
    wait_for_rounds(stopped, count=20)
    process.send_signal(signal.SIGTERM)
    (code,), ((out, err),) = ended([process])
    assert code == 143, err
    assert out == ""
    assert "elm: Stopped after batch" in err
    assert ended([start(stopped, steps=steps)])[0] == [0]
    assert files(stopped) == files(whole)


def recipe(root, steps):
    """Returns the words of a whole recipe, which goes on from the base that is in the run's directory."""
    macros = {
        "MIXTURE_OR_TASK_NAME": [TASKS[0]],
        "EVAL_TASKS": [TASKS[2]],
        "MODEL_DIR": str(root),
        "INITIAL_CHECKPOINT_PATH": str(root / "base"),
        "TRAIN_STEPS": steps,
        "BATCH_SIZE": 4,
        "LEARNING_RATE": 1e-3,
        "MAX_TRAIN_SAMPLES": 40,
    }
    return ["run", "--gin_file=gin/runs/pipeline.gin", *(f"--gin.{k}={v!r}" for k, v in macros.items())]


@pytest.mark.nightly
def test_a_whole_recipe_told_to_stop_while_it_trains_saves_and_says_so_in_one_sentence(make_run):
    root = make_run("recipe")
    process = start_command(root, recipe(root, 100_000))
    wait_for_rounds(root)
    process.send_signal(signal.SIGTERM)
    (code,), ((_, err),) = ended([process])
    assert code == 143, err
    assert "Traceback" not in err
    (said,) = [line for line in err.splitlines() if line.startswith("elm: Stopped after batch ")]
    assert said.endswith("Give the same command to go on from there.")
    assert list((root / "checkpoints").iterdir())


def test_of_two_trainings_in_one_directory_the_second_is_refused_or_waits(make_run):
    root = make_run("crowded")
    first = start(root, steps=100_000)
    wait_for_rounds(root)
    (code,), ((_, said),) = ended([start(root, steps=10)])
    assert code == 2
    assert f"process {first.pid} on " in said
    assert "--wait" in said
    assert "Traceback" not in said
    waiting = start(root, "--wait", steps=10)
    time.sleep(1)
    first.kill()
    (_, code), _ = ended([first, waiting])
    assert code == 0
    assert {Library.open(root / "library").spec(name).steps for name in experts(root)} == {10}
    assert not [file for file in root.rglob(".*") if file.is_file()]


@pytest.mark.nightly
def test_a_command_that_was_stopped_does_not_block_its_correction(make_run):
    root = make_run("corrected")
    first = start(root, steps=100_000)
    wait_for_rounds(root)
    first.send_signal(signal.SIGINT)
    (code,), ((_, said),) = ended([first])
    assert code == 130
    assert "elm: stopped." in said
    assert "Traceback" not in said
    told = count_steps(root)
    first = start(root, steps=100_000)
    wait_for_rounds(root, count=told + 2)
    first.send_signal(signal.SIGTERM)
    assert ended([first])[0] == [143]
    (code,), ((_, said),) = ended([start(root, steps=10)])
    assert code == 0
    assert "steps (100000, now 10)" in said
    assert len(experts(root)) == 6
    (code,), ((_, said),) = ended([start(root, steps=11)])
    assert code == 2
    assert "elm experts remove" in said
    (code,), ((_, said),) = ended([start(root, "--restart", steps=11)])
    assert code == 0, said
    assert {Library.open(root / "library").spec(name).steps for name in experts(root)} == {11}
    assert list((root / "checkpoints").iterdir()) == []
