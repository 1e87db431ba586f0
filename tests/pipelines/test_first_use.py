"""Three people and their first commands: a TPU and five tasks, labelled questions, PEFT adapters of a T5."""

import json
from pathlib import Path

import pytest
import yaml

from elm_jax import cli
from elm_jax.experts.files import relative_directory
from tests.run_fixtures import LORA, TRAINED, UNSEEN

TASKS = ("films", "hotels", "lamps", "meals", "songs")
SAID = [(f"the {word} was {how} .", int(how == "fine")) for word in "abcdefgh" for how in ("fine", "poor")]


@pytest.fixture
def elm(capsys):
    """Runs a command that must end well; returns what it printed, read if it is JSON."""

    def run(*words):
        code = 0
        try:
            cli.main([str(word) for word in words])
        except SystemExit as ended:
            code = ended.code or 0
        out, err = capsys.readouterr()
        assert code == 0, err
        return json.loads(out) if "--json" in words else out

    return run


@pytest.fixture
def five(tmp_path, monkeypatch):
    """An empty directory to work in, with the rows of five tasks and a file that names them."""
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"text": text, "label": label}) for text, label in SAID]
    prompt = {"answer_choices": "bad ||| good", "jinja": "{{text}} Good? ||| {{answer_choices[label]}}"}
    datasets = {}
    for name in TASKS:
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
        files = {"train": f"{name}.jsonl", "validation": f"{name}.jsonl"}
        datasets[name] = {"jsonl": files, "prompts": {"opinion": prompt}}
    (tmp_path / "five.yaml").write_text(yaml.safe_dump({"datasets": datasets}))
    return "five.yaml"


@pytest.fixture(scope="module")
def library(make_run):
    """A run with four experts, as the quickstart leaves one."""
    return make_run(LORA).workspace


@pytest.mark.nightly
@pytest.mark.aot
def test_who_has_a_tpu_and_five_tasks_sees_what_a_slice_holds_and_what_will_be_trained(elm, library, five):
    assert "16 of 16 rows" in elm("tasks", "check", five)
    recipe = ("--gin_file=gin/recipes/prompt_expert.gin", "--gin.MIXTURE_OR_TASK_NAME=five.yaml")
    macros = ("--gin.TRAIN_STEPS=5", "--gin.BATCH_SIZE=4", "--gin.LEARNING_RATE=1e-3")
    (plan,) = elm(
        "plan",
        recipe[0].partition("=")[2],
        "--slice",
        "v5e-1",
        "--size",
        "tiny",
        recipe[1],
        *macros,
        "--json",
    )["slices"]
    assert plan["fits"]
    where = (f"--gin.INITIAL_CHECKPOINT_PATH={library.base}", "--gin.MODEL_DIR=mine")
    told = elm("train", *recipe, *macros, *where, "--dry-run", "--json")
    assert [each["expert"] for each in told["Experts"]] == [f"{name}/opinion" for name in TASKS]
    assert elm("train", *recipe, *macros, *where).split() == [f"{name}/opinion" for name in TASKS]


def test_who_has_labelled_questions_learns_which_experts_help(elm, library, five):
    run = ("--run", library.root)
    assert "16 of 16 rows" in elm("tasks", "check", five)
    methods = ("--method", "base", "--method", "roe", "--oracle")
    elm("evaluate", "films/opinion", "--tasks", five, *run, *methods, "--name", "first")
    elm("evaluate", "films/opinion", "--tasks", five, *run, "--method", "base", "--name", "second")
    said = elm("report", library.root)  # the latest, and what else there is
    assert "first" in said
    assert "second" in said
    elm("report", "first", "second", *run)
    helpful = elm("experts", "list", "--scores", "--task", "films/opinion", *run, "--json")
    assert {each["id"] for each in helpful} == set(TRAINED)
    elm("report", library.root / "reports" / "first", "--export", "tables")
    assert {"accuracy.csv", "accuracy.tex"} <= {file.name for file in Path("tables").iterdir()}


def test_who_has_peft_adapters_finds_the_one_for_a_new_task(elm, library, five):
    elm("init", "mine", "--base", library.base)
    for number, expert in enumerate(TRAINED[:3]):
        elm(
            "convert",
            library.library / relative_directory(expert),
            f"adapter{number}",
            "--to",
            "peft",
            "--base",
            library.base,
        )
        elm(
            "experts",
            "add",
            f"adapter{number}",
            "--id",
            f"{TASKS[number]}/opinion",
            "--tasks",
            five,
            "--run",
            "mine",
        )
    assert len(elm("experts", "list", "--run", "mine", "--json")) == 3
    (routed,) = [each for each in elm("route", UNSEEN, "--run", "mine", "--json") if each][:1]
    assert routed
    elm("evaluate", UNSEEN, "--run", "mine", "--limit", "6", "--method", "base", "--method", "roe")
    assert "roe" in elm("report", "mine")
