"""`elm doctor --plan`: the arithmetic as a table and as JSON, one sentence for a mistake."""

import itertools
import json
import re
import shlex
from pathlib import Path

import pytest

from elm_jax import cli

PAGE = Path(__file__).parents[2] / "docs" / "planning.md"
RECIPE = "gin/recipes/all_prompt_experts.gin"
UNSEEN = "gin/recipes/evaluate_unseen.gin"


def test_a_plan_says_what_fits(capsys):
    cli.app(["doctor", "--plan", "xl", "--experts", "296", "--slice", "v4-8"], standalone_mode=False)
    said = capsys.readouterr().out
    assert "base of 2.85 B parameters, bfloat16" in said
    assert "296 bottleneck experts" in said
    fits = next(line for line in said.splitlines() if "evaluation fits" in line)
    assert "yes" in fits


def test_a_plan_is_json_for_a_script(capsys):
    flags = ["--kind", "lora", "--rank", "4", "--slice", "8xh100", "--mesh", "expert=2,fsdp=-1"]
    cli.app(["doctor", "--plan", "small", *flags, "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 76_961_152
    # Queries and values of 8 + 2 * 8 attentions, from 512 to 384.
    assert found["expert_parameters"] == 24 * 2 * 4 * (512 + 384)
    assert found["shares"][0]["mesh"] == {"expert": 2, "data": 1, "fsdp": 4, "tensor": 1}
    assert found["fits"]["8xh100"]["evaluation"] == "yes"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--plan", "xq"], "Did you mean 'xl'"),
        (["--plan", "xl", "--dtype", "float16"], "float32 or bfloat16"),
        (["--plan", "xl", "--mesh", "model=2"], "as expert=4,fsdp=-1; 'model=2' came"),
        (["--plan", "xl", "--slice", "v4-8", "--mesh", "fsdp=3"], "A mesh of 4 devices is wanted"),
        (["--plan", "xl", "--kind", "ia3", "--width", "4"], "'width' came"),
        (["--plan", "xl", "--disk", "2"], "--disk is a recipe's"),
        (["--plan", "xl", "--gin.PLACES=8"], "--gin.MACRO=VALUE is a recipe's"),
        (
            ["--plan", RECIPE, "--mean-prompt", "0"],
            "A number above 0 is wanted for --mean-prompt, but 0.0 came",
        ),
        (["--plan", RECIPE, "--disk", "0"], "A number above 0 is wanted for --disk"),
        (["--plan", RECIPE, "--group", "4"], "--group is what a recipe says itself"),
        (["--plan", RECIPE, "--kind", "lora"], "--kind is what a recipe says itself"),
        (["--plan", RECIPE, "--slice", "v3-8"], "Rates of v3 are wanted"),
        (["--plan", "gin/recipes/non.gin"], "no file is there"),
        (["--plan", UNSEEN], "give --experts"),
        (["--plan", UNSEEN, "--experts", "2", "--mesh", "data=4"], "--mesh is training's"),
    ],
)
def test_a_plan_that_cannot_be_is_one_sentence(capsys, flags, said):
    with pytest.raises(SystemExit) as stop:
        cli.main(["doctor", *flags])
    told = capsys.readouterr()
    assert stop.value.code == 2
    assert told.out == ""
    assert said in told.err
    assert told.err.count("\n") == 1


def test_a_recipe_is_predicted_on_slices(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["doctor", "--plan", RECIPE, "--gin.MIXTURE_OR_TASK_NAME='dream'", "--slice", "v4-8"])
    said = capsys.readouterr().out
    assert not stop.value.code
    cells = {
        line.split("│")[1].strip(): line.split("│")[2].strip() for line in said.splitlines() if "│" in line
    }
    assert cells["experts"] == "5 of kind bottleneck"
    assert cells["mesh"] == "expert=4"
    assert {"time", "device-hours", "sent by a device, GB a batch", "a checkpoint, GB"} <= set(cells)


def test_a_prediction_is_json_for_a_script(capsys):
    flags = ["--gin.MIXTURE_OR_TASK_NAME='dream'", "--mesh", "data=8", "--slice", "8xh100", "--size", "large"]
    with pytest.raises(SystemExit):
        cli.main(["doctor", "--plan", RECIPE, *flags, "--mean-prompt", "120", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert len(found["workload"]["experts"]) == 5
    assert found["workload"]["experts"][0]["prompt"] == 120
    [one] = found["predictions"]
    assert one["mesh"] == {"expert": 1, "data": 8, "fsdp": 1, "tensor": 1}
    assert set(one["cost"]["sent"]) == {"data"}
    each = one["each"]
    of_one = max(each["compute"], each["memory"]) + each["traffic"] + each["moving"]
    assert one["seconds"] == pytest.approx(one["batches"] * of_one)


def examples():
    """Returns the commands of the page on planning and what stands there as their output."""
    blocks = re.findall(
        r"^```(\w+)( title=\"Output\")?\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    pairs = itertools.pairwise(blocks)
    return [(one[2], other[2]) for one, other in pairs if one[0] == "bash" and other[1]]


@pytest.mark.parametrize(("command", "output"), examples(), ids=lambda text: text.split("gin")[0][:20])
def test_the_tables_of_the_page_on_planning_are_what_its_commands_print(capsys, command, output):
    [line] = re.sub(r"\\\n\s*", " ", command).strip().splitlines()
    with pytest.raises(SystemExit):
        cli.main(shlex.split(line)[1:])
    said = capsys.readouterr().out
    assert [row.rstrip() for row in said.splitlines()] == [row.rstrip() for row in output.splitlines()]


def test_the_page_on_planning_has_tables_of_all_that_the_paper_trains_and_scores():
    assert len(examples()) >= 4
