"""The sweep: parts side by side, what is trained skipped, what was taken away started again."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from elm_jax import storage
from elm_jax.data import task_selection
from elm_jax.experts.library import Library
from elm_jax.models import paths
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import init_params
from elm_jax.tasks import rendering
from elm_jax.telemetry import jsonl_log
from elm_jax.tokenizers import sentencepiece
from elm_jax.weights import base as base_module
from elm_jax.weights import elm

HERE = Path(__file__).parent
SCRIPTS = HERE.parents[1] / "scripts" / "tpu"
STUB = f"{sys.executable} {HERE / 'stub_elm.py'}"
TASKS = ["mini_size_animal", "mini_size_thing", "mini_sentiment_film"]  # of two prompts each
EXPERTS = [spec.id for spec in task_selection.choose(TASKS)]


@pytest.fixture
def sweep(cloud, tmp_path):
    """Runs a sweep of the stub's; returns its exit code, its lines and its errors."""

    def run(*words, fates=(), local=2):
        cut = words.index("--") if "--" in words else len(words)
        for at, fate in enumerate(fates):
            (cloud.root / "fates" / str(at)).write_text(fate)
        where = [f"--local={local}", f"--elm={STUB}"] if local else []
        flags = [f"--model-dir={tmp_path / 'out'}", f"--logs={tmp_path / 'logs'}", "--names", *TASKS]
        code, out, err = cloud.script("sweep", *words[:cut], *flags, *where, *words[cut:])
        return code, out.splitlines(), err

    return run


def of(root, kind="prompt_experts"):
    return set(Library.open(root / "out" / kind / "library").ids())


def starts(root, part):
    """What a part's command was called with, each time."""
    file = root / "logs" / f"{part}.log"
    return (
        [line for line in file.read_text().splitlines() if line.startswith("ran ")] if file.exists() else []
    )


def test_every_expert_is_trained_by_one_part(sweep, tmp_path):
    code, lines, err = sweep()
    assert code == 0, err
    assert lines[0] == "sweep: 0 of 9 experts are trained; 4 parts to run"
    assert lines[-1] == "sweep: 9 of 9 experts are trained"
    assert of(tmp_path) == set(EXPERTS)
    assert of(tmp_path, "dataset_experts") == {f"{dataset}/all" for dataset in TASKS}
    called = [starts(tmp_path, f"prompts-{at}-of-2") for at in (1, 2)]
    assert [len(each) for each in called] == [1, 1]
    for expert in EXPERTS:
        assert sum(repr(expert) in each[0] for each in called) == 1


def test_the_papers_experts_are_296_and_36(cloud, tmp_path):
    words = ["--local=8", f"--model-dir={tmp_path}", "--dry-run"]
    _, out, _ = cloud.script("sweep", *words)
    assert out.startswith("sweep: 0 of 332 experts are trained; 16 parts to run\n")
    assert cloud.script("sweep", "prompts", *words)[1].startswith("sweep: 0 of 296 experts")


def test_what_is_trained_is_not_trained_again(sweep, tmp_path):
    assert sweep("prompts")[0] == 0
    code, lines, _ = sweep("prompts")
    assert code == 0
    assert lines == ["sweep: 6 of 6 experts are trained; 0 parts to run", "sweep: 6 of 6 experts are trained"]
    assert len(starts(tmp_path, "prompts-1-of-2")) == 1


def test_checkpoints_that_a_killed_process_left_of_a_whole_part_are_deleted(sweep, tmp_path):
    assert sweep("prompts", local=1)[0] == 0
    checkpoints = tmp_path / "out" / "prompt_experts" / "checkpoints"
    for experts in (EXPERTS, ["another/part"]):
        (checkpoints / storage.fingerprint(sorted(experts)) / "40").mkdir(parents=True)
    assert sweep("prompts", local=1)[0] == 0
    assert [each.name for each in checkpoints.iterdir()] == [storage.fingerprint(["another/part"])]


def test_only_parts_that_lack_an_expert_are_run(sweep, tmp_path):
    assert sweep("prompts")[0] == 0
    (
        tmp_path
        / "out"
        / "prompt_experts"
        / "library"
        / "mini_size_animal"
        / "than%20a%20dog"
        / "expert.json"
    ).unlink()
    code, lines, _ = sweep("prompts")
    assert code == 0
    assert lines[0] == "sweep: 5 of 6 experts are trained; 1 parts to run"
    assert [len(starts(tmp_path, f"prompts-{at}-of-2")) for at in (1, 2)] == [2, 1]


def test_a_part_that_was_killed_is_started_again_with_the_same_experts(sweep, tmp_path):
    code, lines, _ = sweep("prompts", fates=["half"], local=1)
    assert code == 0
    assert "sweep: prompts-1-of-1 was taken away after start 1 of 5; 3 of its 6 experts are trained" in lines
    first, second = starts(tmp_path, "prompts-1-of-1")
    assert first == second
    assert of(tmp_path) == set(EXPERTS)


def test_a_part_that_ended_well_but_early_is_started_again(sweep, tmp_path):
    code, lines, _ = sweep("prompts", fates=["stopped", "1"], local=1)
    assert code == 0
    assert len(starts(tmp_path, "prompts-1-of-1")) == 3
    assert (
        "sweep: prompts-1-of-1 ended with exit code 0 after start 1 of 5; 0 of its 6 experts are trained"
        in lines
    )


def test_starts_are_bounded_and_what_is_missing_is_said(sweep, tmp_path):
    code, lines, _ = sweep("prompts", "--attempts=3", fates=["half", "killed", "killed"], local=1)
    assert code == 1
    assert len(starts(tmp_path, "prompts-1-of-1")) == 3
    missing = [line.removeprefix("missing: ") for line in lines if line.startswith("missing: ")]
    assert set(missing) == set(EXPERTS) - of(tmp_path)
    assert len(missing) == 3
    assert lines[-1].startswith("sweep: give the same command again to go on")


def test_a_mistake_is_told_and_not_tried_again(sweep, tmp_path):
    code, lines, _ = sweep("prompts", fates=["2"], local=1)
    assert code == 1
    assert len(starts(tmp_path, "prompts-1-of-1")) == 1
    assert "sweep: prompts-1-of-1 is not started again: elm: the recipe does not read." in lines


def test_a_dry_run_prints_every_parts_command_and_starts_none(sweep, tmp_path):
    code, lines, _ = sweep("--dry-run", "--env=DEVICE={place}")
    assert code == 0
    assert sum(line.startswith("$ DEVICE=0 ") for line in lines) == 2
    assert sum(line.startswith("$ DEVICE=1 ") for line in lines) == 2
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["prompt"], "A kind of experts is wanted, of prompts, datasets, full_datasets, but 'prompt' came."),
        (["--attempts=0"], "At least one place, part and attempt are wanted"),
        (["--", "--gin.MODEL_DIR='x'"], "The sweep sets MODEL_DIR for every part"),
    ],
)
def test_mistakes_in_the_command_are_one_sentence(sweep, words, told):
    code, _, err = sweep(*words)
    assert code == 2
    assert err.startswith(f"sweep: {told}")


def test_a_process_of_an_earlier_sweep_is_waited_for(cloud, sweep, tmp_path):
    (tmp_path / "logs").mkdir()
    log = (tmp_path / "logs" / "prompts-1-of-1.log").open("ab")
    fcntl.flock(log, fcntl.LOCK_EX)
    words = ["prompts", f"--model-dir={tmp_path / 'out'}", f"--logs={tmp_path / 'logs'}", "--names", *TASKS]
    command = [sys.executable, SCRIPTS / "sweep.py", *words, "--local=1", f"--elm={STUB}"]
    with subprocess.Popen(command, env=cloud.environment, stdout=subprocess.PIPE, text=True) as process:
        assert any("has a process already, which is waited for" in line for line in process.stdout)
        assert not (tmp_path / "out").exists()
        log.close()
        assert process.wait(timeout=60) == 0
    assert of(tmp_path) == set(EXPERTS)


def test_a_sweep_that_is_told_to_stop_lets_its_processes_save(cloud, tmp_path):
    for at in range(2):
        (cloud.root / "fates" / str(at)).write_text("waits")
    words = ["prompts", f"--model-dir={tmp_path / 'out'}", f"--logs={tmp_path / 'logs'}", "--names", *TASKS]
    command = [sys.executable, SCRIPTS / "sweep.py", *words, "--local=2", f"--elm={STUB}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=cloud.environment, **pipes) as process:
        started = 0
        for line in process.stdout:
            started += " is process " in line
            if started == 2:
                break
        for _ in range(600):
            if all(starts(tmp_path, f"prompts-{at}-of-2") for at in (1, 2)):
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "sweep: stopped. Give the same command again to go on.\n"
    for at in (1, 2):
        assert (tmp_path / "logs" / f"prompts-{at}-of-2.log").read_text().endswith("saved\n")


SLICES = ["--slices=2", "--name=s", "--accelerator-type=v4-8", "--runtime-version=R", "--every=0.1"]


@pytest.fixture
def slices(cloud, sweep, tmp_path):
    """Sweeps over two slices whose workers have the stub for `elm`."""
    wheel = tmp_path / "elm_jax-0.1.0-py3-none-any.whl"
    wheel.write_text("a wheel")
    (cloud.root / "elm").write_text(f'#!/bin/sh\nif [ "$1" = --help ]; then exit 0; fi\nexec {STUB} "$@"\n')
    return lambda *words, **how: sweep("prompts", *SLICES, f"--wheel={wheel}", *words, local=0, **how)


def test_slices_are_made_and_share_the_experts(cloud, slices, tmp_path):
    code, lines, err = slices()
    assert code == 0, (lines, err)
    assert of(tmp_path) == set(EXPERTS)
    assert sorted(cloud.verbs()).count("create s-1") == 1
    assert sorted(cloud.verbs()).count("create s-2") == 1
    assert "delete s-1" not in cloud.verbs()
    assert lines[-1] == "sweep: the slices are still there and cost; `pod.py delete NAME` deletes one."


def test_a_slice_that_is_taken_away_is_made_anew_and_its_part_goes_on(cloud, slices, tmp_path):
    gone = {"at": ["ssh s-2", "--worker=0"], "code": 255, "states": {"s-2": "SUSPENDED"}}
    cloud.answer(gone)
    # Neither slice's first job trains anything, so that what the second start does is seen.
    code, lines, err = slices("--delete", fates=["stopped"] * 4)
    assert code == 0, (lines, err)
    assert "sweep: prompts-2-of-2 was taken away after start 1 of 5; 0 of its 3 experts are trained" in lines
    on_second = [verb for verb in cloud.verbs() if verb.endswith(" s-2")]
    assert on_second[on_second.index("delete s-2") :][:2] == ["delete s-2", "create s-2"]
    assert [verb.split()[0] for verb in on_second].count("create") == 2
    assert of(tmp_path) == set(EXPERTS)
    assert list((cloud.root / "states").iterdir()) == []  # --delete


def test_a_slice_that_cannot_be_made_is_given_up_after_some_attempts(cloud, slices, tmp_path):
    cloud.answer(*({"at": ["create s-2"], "code": 1, "err": "no quota"} for _ in range(2)))
    code, lines, _ = slices("--attempts=2")
    assert code == 1
    assert cloud.verbs().count("create s-2") == 2
    assert len(of(tmp_path)) == 3
    assert sum(line.startswith("missing: ") for line in lines) == 3


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small base that nobody trained, with the vocabulary of the tasks."""
    root = tmp_path_factory.mktemp("base")
    texts = [
        text
        for spec in task_selection.choose(TASKS)
        for example in rendering.examples(spec, "train").examples[:50]
        for text in (example.input, example.target)
    ]
    pieces = sentencepiece.train(texts, root / "vocabulary.model", 200, kind="word", extra_ids=16)
    config = find_config("tiny", vocab_size=-(-pieces.size // 64) * 64, emb_dim=32, head_dim=8, mlp_dim=48)
    elm.save(root, base_module.make_base(config, init_params(jax.random.key(0), config)))
    return root


def flags_of(base, steps):
    told = {
        "INITIAL_CHECKPOINT_PATH": str(base),
        "TRAIN_STEPS": steps,
        "BATCH_SIZE": 4,
        "LEARNING_RATE": 1e-3,
    }
    told |= {"MAX_TRAIN_SAMPLES": 40, "SAVE_PERIOD": 10, "TASK_FEATURE_LENGTHS": {"inputs": 32, "targets": 8}}
    return [f"--gin.{name}={value!r}" for name, value in told.items()]


def experts(root):
    library = Library.open(root / "prompt_experts" / "library")
    return {name: paths.flatten(library.load_expert(name).params) for name in library.ids()}


@pytest.mark.slow
def test_four_processes_of_which_two_are_killed_train_what_one_trains(base, tmp_path):
    own = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    own["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

    def start(where, local):
        words = [
            "prompts",
            f"--model-dir={where}",
            f"--local={local}",
            f"--logs={where}-logs",
            "--names",
            *TASKS,
        ]
        return subprocess.Popen(
            [sys.executable, SCRIPTS / "sweep.py", *words, "--", *flags_of(base, steps=100)],
            env={**os.environ, **own},
            stdout=subprocess.PIPE,
            text=True,
        )

    alone, shared = tmp_path / "alone", tmp_path / "shared"
    said, _ = start(alone, 1).communicate(timeout=300)
    assert said.endswith("sweep: 6 of 6 experts are trained\n"), said

    sweep = start(shared, 4)
    numbers, lines = {}, []
    for line in sweep.stdout:
        lines.append(line)
        if " is process " in line:
            words = line.split()
            numbers[words[1]] = int(words[4].rstrip(","))
            if len(numbers) == 4:
                break
    # One before it does anything, one in the midst of training: when its part has a checkpoint.
    os.kill(numbers["prompts-1-of-4"], signal.SIGKILL)
    mark = storage.fingerprint(sorted(EXPERTS[1::4]))
    checkpoints = shared / "prompt_experts" / "checkpoints" / mark
    for _ in range(600):
        if checkpoints.exists() and any(each.name.isdigit() for each in checkpoints.iterdir()):
            break
        time.sleep(0.05)
    os.kill(numbers["prompts-2-of-4"], signal.SIGKILL)
    rest, _ = sweep.communicate(timeout=300)
    lines += rest.splitlines(keepends=True)
    told = "".join(lines)
    assert sweep.returncode == 0, told
    assert "prompts-1-of-4 was taken away after start 1 of 5; 0 of its 2" in told
    assert "prompts-2-of-4 was taken away after start 1 of 5; " in told
    assert told.count(" is process ") == 6
    assert told.endswith("sweep: 6 of 6 experts are trained\n")
    logs = shared / "prompt_experts" / "logs"
    for at in range(1, 5):  # the journal of each part is its own
        own = {
            each["expert"]
            for each in jsonl_log.read(logs / f"prompts-{at}-of-4" / "training.jsonl")[1:]
            if "expert" in each
        }
        assert own == set(EXPERTS[at - 1 :: 4])
    assert list((shared / "prompt_experts" / "checkpoints").iterdir()) == []
    found, wanted = experts(shared), experts(alone)
    assert found.keys() == wanted.keys() == dict.fromkeys(EXPERTS).keys()
    for name, params in wanted.items():
        for path, value in params.items():
            np.testing.assert_allclose(found[name][path], value, atol=1e-5, err_msg=f"{name} {path}")
