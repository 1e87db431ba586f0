"""The sweep: parts share the experts, each is one `elm train`, and missing experts are named."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from elm_jax import cli
from elm_jax.data import task_selection
from elm_jax.experts.library import Library
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import init_params
from elm_jax.tasks import rendering
from elm_jax.tokenizers import sentencepiece
from elm_jax.weights import base_model, elm

SCRIPT = Path(__file__).parents[2] / "scripts" / "sweep.py"
TASKS = ["mini_size_animal", "mini_sentiment_film"]  # of two prompts each


@pytest.fixture(scope="module")
def sweep():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("sweep", SCRIPT)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def run(*words):
    return subprocess.run([sys.executable, SCRIPT, *map(str, words)], capture_output=True, text=True)


@pytest.mark.parametrize(("kind", "count"), [("prompts", 296), ("datasets", 36), ("full_datasets", 36)])
def test_parts_share_the_papers_experts_out(sweep, kind, count):
    kind = sweep.KINDS[kind]
    experts = sweep.experts_of(kind, ["train"])
    assert len(experts) == count
    tasks = []
    for number in range(1, 9):
        command = sweep.part_command(kind, "runs/xl", (number, 8), experts, ())
        macros = dict(word.removeprefix("--gin.").split("=", 1) for word in command[2:])
        assert ast.literal_eval(macros["MODEL_DIR"]) == "runs/xl"
        assert ast.literal_eval(macros["LOGS"]) == f"runs/xl/logs/part-{number}-of-8"
        tasks += ast.literal_eval(macros["MIXTURE_OR_TASK_NAME"])
    assert sorted(tasks) == sorted(task for each in experts.values() for task in each)
    assert len(tasks) == 296


def test_a_part_is_a_training_that_the_command_line_takes(sweep, tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(sweep.os, "execv", lambda program, words: ran.append(words) or sys.exit(0))
    words = ["prompts", "--part=2/2", f"--model-dir={tmp_path}", "--names", *TASKS]
    monkeypatch.setattr(sys, "argv", ["sweep.py", *words, "--", "--gin.TRAIN_STEPS=5"])
    with pytest.raises(SystemExit):
        sweep.main()
    ((_, _, module, verb, *flags),) = ran
    assert (module, verb, flags[-1]) == ("elm_jax.cli", "train", "--gin.TRAIN_STEPS=5")
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", *flags])
    assert stop.value.code == 2
    assert "INITIAL_CHECKPOINT_PATH" in capsys.readouterr().err


def test_missing_experts_are_printed_with_exit_code_1(tmp_path):
    done = run("prompts", "--missing", f"--model-dir={tmp_path}", "--names", *TASKS)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [spec.id for spec in task_selection.select_tasks(TASKS)]
    assert "0 of 4" in done.stderr


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["prompt", "--missing"], "'prompt'"),
        (["prompts", "--part=5/4"], "'5/4'"),
        (["prompts"], "--part"),
        (["prompts", "--missing", "--names", "mini_size_anima"], "'mini_size_animal'"),
    ],
)
def test_a_mistake_is_named_with_exit_code_2(tmp_path, words, named):
    done = run(*words, f"--model-dir={tmp_path}")
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_two_parts_train_all_experts(tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    texts = [
        text
        for spec in task_selection.select_tasks(TASKS)
        for example in rendering.examples(spec, "train").examples[:50]
        for text in (example.input, example.target)
    ]
    base.mkdir()
    pieces = sentencepiece.train(texts, base / "vocabulary.model", 200, kind="word", extra_ids=16)
    config = find_config("tiny", vocab_size=-(-pieces.size // 64) * 64, emb_dim=32, head_dim=8, mlp_dim=48)
    elm.save(base, base_model.make_base(config, init_params(jax.random.key(0), config)))
    macros = {"INITIAL_CHECKPOINT_PATH": str(base), "TRAIN_STEPS": 3, "BATCH_SIZE": 4, "LEARNING_RATE": 1e-3}
    macros |= {"MAX_TRAIN_SAMPLES": 40, "TASK_FEATURE_LENGTHS": {"inputs": 32, "targets": 8}}
    flags = [f"--gin.{name}={value!r}" for name, value in macros.items()]
    for part in ("1/2", "2/2"):
        done = run("prompts", f"--part={part}", f"--model-dir={out}", "--names", *TASKS, "--", *flags)
        assert done.returncode == 0, done.stderr
    assert len(Library.open(out / "prompt_experts" / "library").ids()) == 4
    assert run("prompts", "--missing", f"--model-dir={out}", "--names", *TASKS).returncode == 0
