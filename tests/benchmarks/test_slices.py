"""The benchmark of slices: its cases, and the figures that it makes of what a compiler says."""

import json
import sys
from dataclasses import replace

import pytest

from benchmarks import slice_cases, slices
from elm_jax.aot.compiler import CompiledProgram
from elm_jax.planning import program_specs as works

ACCUMULATE = CompiledProgram(
    name="accumulate",
    slice="v4-8",
    fits=True,
    peak_bytes=12 * 10**9,
    xla_peak_bytes=10 * 10**9,
    limit_bytes=32 * 10**9,
    compile_seconds=100.0,
    flops=1e14,
    seconds=0.4,
    cycle_seconds=0.3,
    collective_seconds=0.08,
    move_seconds=0.015,
    kernel_seconds=0.005,
    collectives=(),
    unpriced=(),
    reason=None,
    cached=False,
)


def case(name):
    (found,) = [each for each in slice_cases.cases() if each.name == name]
    return found


def test_a_case_of_t5x_follows_ours_for_the_same_work():
    found = slice_cases.cases()
    assert len({each.name for each in found}) == len(found)
    for number, each in enumerate(found):
        if each.side == "T5X":
            ours = found[number - 1]
            assert (each.name, each.work, each.tokens) == (f"{ours.name}/t5x", ours.work, ours.tokens)


@pytest.mark.parametrize(
    "name", ["full/v4-8/6", "group_32/v4-8", "scoring/v5e-1", "generation/v5e-1", "minilm/v5e-1"]
)
def test_the_work_of_a_case_goes_to_the_compiler_as_json(name):
    found = case(name)
    assert works.from_json(json.loads(json.dumps(found.told))) == found.work


def test_the_flops_of_a_case_are_those_of_its_mathematics():
    full = case("full/v4-8/6").work
    assert full.model_flops("accumulate") == pytest.approx(3 * full.model_flops("evaluate"))
    assert full.model_flops("update") is None
    # 24 rows; a layer has D² four times in attention and D F three times, and 6 of a parameter and token.
    square, wide, layers, prompts, targets = 2048**2, 3 * 2048 * 5120, 24, 24 * 512, 24 * 128
    encoder = layers * (4 * square + wide + 2 * square) * prompts  # with cross-attention's keys and values
    decoder = (layers * (6 * square + wide) + 32128 * 2048) * targets
    attended = layers * 2048 * (512 * prompts + (128 + 512) * targets)
    assert full.model_flops("accumulate") == pytest.approx(6 * (encoder + decoder) + 12 * attended)
    # 6 layers of 4 D² + 2 D F parameters, and 2 D K of attention, twice a token.
    layer = 4 * 384**2 + 2 * 384 * 1536 + 2 * 384 * 256
    assert case("minilm/v5e-1").work.model_flops("embed") == 2 * 6 * layer * 256 * 256
    assert case("generation/v5e-1").work.model_flops("generate") is None


def test_the_programs_of_a_step_add_up(monkeypatch):
    nothing = dict.fromkeys(["collective_seconds", "move_seconds", "kernel_seconds"], 0.0)
    update = replace(ACCUMULATE, name="update", seconds=0.1, cycle_seconds=0.1, **nothing)
    monkeypatch.setattr(slices, "compile_programs", lambda *_: [ACCUMULATE, update])
    monkeypatch.setattr(slices, "require_compiler", lambda _: None)
    found = slices.case_row(case("full/v4-8/6"))
    assert found["seconds"] == pytest.approx(0.5)
    assert found["cycle_seconds"] == pytest.approx(0.4)
    assert found["tokens_per_second_per_chip"] == pytest.approx(6 * 640 / 0.5)
    flops = case("full/v4-8/6").work.model_flops("accumulate") / 4
    assert found["mfu"] == pytest.approx(flops / 0.5 / 275e12)
    (cells,) = slices.case_table([json.loads(json.dumps(found))]).rows
    assert cells[1:8] == ("v4-8", "ours", "500.0", "400.0", "80.0", "15.0", "5.0")
    assert cells[8] == f"{100 * found['mfu']:.1f} %"
    assert cells[10] == "12.0 (10.0)"


def test_a_program_that_is_refused_has_no_seconds(monkeypatch):
    refused = replace(
        ACCUMULATE,
        fits=False,
        reason="it is too large",
        xla_peak_bytes=None,
        seconds=None,
        cycle_seconds=None,
        collective_seconds=None,
        move_seconds=None,
        kernel_seconds=None,
    )
    monkeypatch.setattr(slices, "compile_programs", lambda *_: [refused])
    monkeypatch.setattr(slices, "require_compiler", lambda _: None)
    found = slices.case_row(case("alone/v5e-1"))
    assert (found["fits"], found["mfu"], found["tokens_per_second_per_chip"]) == (False, None, None)
    (cells,) = slices.case_table([found]).rows
    assert cells[0].endswith("does not fit")
    assert cells[10] == "12.0 (–)"


def test_names_are_listed_and_an_unknown_one_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["slices", "--list", "--only", "full/*", "*/h200"])
    slices.main()
    listed = capsys.readouterr().out.split()
    assert "dataset_expert/h200" in listed
    assert "full/v4-8/6/t5x" in listed
    assert "alone/v5e-1" not in listed
    monkeypatch.setattr(sys, "argv", ["slices", "--only", "nothing"])
    with pytest.raises(SystemExit, match="--list"):
        slices.main()
