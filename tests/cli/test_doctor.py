"""`elm doctor --plan`: the arithmetic as a table and as JSON, one sentence for a mistake."""

import json

import pytest

from elm_jax import cli


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
