"""`elm plan`: small networks by the TPU's own compiler, and one sentence for each mistake."""

import json
import subprocess
import sys

import pytest

from elm_jax import cli
from elm_jax.extras import install_command

PROMPTS = "gin/recipes/prompt_expert.gin"
SMALL = ["--gin.MIXTURE_OR_TASK_NAME='dream'", "--size", "tiny"]
UNSEEN = "gin/recipes/evaluate_unseen.gin"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def kept(cache, monkeypatch):
    """What one test compiles, another finds."""
    monkeypatch.setenv("ELM_JAX_CACHE", str(cache))


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", *arguments])
    return ended.value.code or 0


@pytest.mark.aot
def test_a_plan_of_a_training_is_json_for_a_script_and_what_was_compiled_once_is_kept(capsys):
    flags = (PROMPTS, "--slice", "v5e-4", *SMALL, "--json")
    assert run(*flags) == run(*flags) == 0
    found, again = (json.loads(line)["slices"][0] for line in capsys.readouterr().out.splitlines())
    assert (found["slice"], found["recipe"], found["fits"]) == ("v5e-4", PROMPTS, True)
    assert found["mesh"] == {"expert": 4, "data": 1, "fsdp": 1, "tensor": 1}
    assert found["experts_at_once"] == 8  # five, on four parts of the mesh
    programs = {program["name"]: program for program in found["programs"]}
    assert {"init", "put_slot", "take_slot"} <= set(programs)
    assert ("train_step" in programs) != ({"accumulate", "update"} <= set(programs))
    accumulate = programs.get("train_step") or programs["accumulate"]
    assert accumulate["fits"]
    assert 0 < accumulate["peak_bytes"] < accumulate["limit_bytes"]
    assert accumulate["compile_seconds"] > 0
    # A network so small has edges.
    assert accumulate["flops"] == pytest.approx(accumulate["model_flops"], rel=0.35)
    assert 0 < accumulate["mfu"] < 1
    assert accumulate["seconds"] > 0
    assert accumulate["collectives"] == []  # experts need nothing of one another
    assert found["device_hours"] == pytest.approx(found["hours"] * found["devices"])
    assert all(program["cached"] for program in again["programs"])
    assert found["hours"] == again["hours"]


@pytest.mark.nightly
@pytest.mark.aot
def test_a_plan_of_an_evaluation_has_a_program_for_each_way_to_score(capsys):
    methods = "--gin.METHODS=('roe','arrow:k=2')"
    assert run(UNSEEN, "--slice", "v5e-1", "--size", "tiny", "--experts", "3", methods) == 0
    said = capsys.readouterr().out
    for program in ("score stack", "score gate", "embed T5", "embed MiniLM", "search"):
        assert program in said
    assert "device-hours" in said


@pytest.mark.aot
def test_what_does_not_fit_is_said_with_the_compilers_reason_and_exit_code_1(capsys):
    big = ["--gin.EXPERT_KIND='full'", "--gin.OPTIMIZER='adamw'", "--size", "xxl"]
    assert run(PROMPTS, "--gin.MIXTURE_OR_TASK_NAME='dream'", "--slice", "v5e-1", *big, "--json") == 1
    told = capsys.readouterr()
    (found,) = json.loads(told.out)["slices"]
    assert found["fits"] is False
    assert found["hours"] is None
    assert told.err.splitlines()[-1].startswith("elm: gin/recipes/prompt_expert.gin on v5e-1: ")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([PROMPTS, "--slice", "v9-8", *SMALL], "Expected a slice"),
        ([PROMPTS, "--slice", "v5e-3", *SMALL], "Expected a slice"),
        (["gin/recipes/non.gin", "--slice", "v5e-1"], "got no file there"),
        (["gin/models/t5_tiny_from_scratch.gin", "--slice", "v5e-1"], "that trains or evaluates"),
        ([PROMPTS, "--slice", "v5e-1", *SMALL, "--gin.TRAIN_STEPS=0"], "Expected steps"),
        (
            [PROMPTS, "--slice", "v5e-4", *SMALL, "--mesh", "fsdp=3"],
            "mesh of 4 devices, got expert=1, data=-1, fsdp=3",
        ),
        ([PROMPTS, "--slice", "2xv5e-4", *SMALL, "--mesh", "fsdp=8"], "divide into 2 slices"),
        ([PROMPTS, "--slice", "v5e-4", *SMALL, "--mesh", "model=2"], "--mesh expert=4,fsdp=-1"),
        (
            [PROMPTS, "--slice", "v5e-4", "--gin.MIXTURE_OR_TASK_NAME='dream'", "--size", "xq"],
            "Did you mean 'xl'",
        ),
        ([PROMPTS, "--slice", "v5e-4", *SMALL, "--dtype", "float16"], "float32 or bfloat16"),
        ([UNSEEN, "--slice", "v5e-1", "--experts", "0"], "Expected experts to evaluate"),
    ],
)
def test_a_plan_that_cannot_be_is_one_sentence_and_exit_code_2(capsys, monkeypatch, flags, said):
    monkeypatch.setattr("elm_jax.aot.slices.require_compiler", lambda platform: None)
    assert run(*flags) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert said in told.err
    assert told.err.count("\n") == 1


def test_without_the_compilers_one_sentence_names_the_extra(tmp_path):
    """In a process where libtpu cannot be found."""
    (tmp_path / "blocked.py").write_text(
        "import sys, importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'libtpu' else find(name, *rest)\n"
        "from elm_jax import cli\n"
        "cli.main(sys.argv[1:])\n"
    )
    arguments = ["plan", PROMPTS, "--slice", "v5e-1", *SMALL]
    done = subprocess.run(
        [sys.executable, tmp_path / "blocked.py", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert install_command("plan") in done.stderr
    assert done.stderr.count("\n") == 1
