"""Collectives: what a program's text says is counted, loops as often as they run."""

import pytest

from elm_jax.runs import collectives

MESH = {"expert": 1, "data": 2, "fsdp": 4, "tensor": 1}
PROGRAM = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (carried: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %own = f32[2,4]{1,0} parameter(0)
  %whole = f32[8,4]{1,0} all-gather(%own), replica_groups=[2,4]<=[8], dimensions={0}, metadata={op_name="jit(step)/gather"}
}

%condition (carried: (s32[], f32[8,4])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: f32[2,4]) -> f32[] {
  %loop = (s32[], f32[8,4]{1,0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %sums = (f32[10]{0}, bf16[3,2]{1,0}) all-reduce(%x, %y), replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
  %alone = f32[10]{0} all-reduce(%x), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
  %next = f32[6]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
}
"""  # noqa: E501


def test_a_program_tells_what_it_sends_along_which_axes_and_how_often():
    found = {each.kind: each for each in collectives.collectives(PROGRAM, MESH)}
    assert set(found) == {"all-gather", "all-reduce", "collective-permute"}
    gathered, summed = found["all-gather"], found["all-reduce"]
    assert (gathered.axes, gathered.devices, gathered.size, gathered.times) == (("fsdp",), 4, 128, 5)
    assert gathered.name == "jit(step)/gather"
    assert gathered.sent == 5 * 128 * 3 / 4
    assert (summed.axes, summed.devices, summed.size, summed.times) == (("data",), 2, 40 + 12, 1)
    assert summed.sent == 2 * 52 / 2
    assert found["collective-permute"].sent == 24


def test_what_is_sent_is_added_up_by_axes():
    totals = collectives.by_axes(collectives.collectives(PROGRAM, MESH))
    assert totals == {("fsdp",): 480 + 24, ("data",): 52}


def test_a_started_gather_is_counted_by_its_result_alone():
    line = "%s = (f32[2]{0}, f32[8]{0}) all-gather-start(%x), replica_groups=[2,4]<=[8], dimensions={0}"
    [found] = collectives.collectives("ENTRY %main (p: f32[2]) -> f32[] {\n  " + line + "\n}", MESH)
    assert found.size == 32


@pytest.mark.parametrize(
    ("groups", "one"),
    [
        ("replica_groups={{0,2},{1,3}}, use", [0, 2]),
        ("replica_groups=[2,4]<=[8]", [0, 1, 2, 3]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [0, 4]),
        ("replica_groups=mesh['x'=2,'y'=2,'z'=2] {'x','z'}, use", [0, 1, 4, 5]),
        ("use_global_device_ids=true", [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_groups_of_devices_are_read_in_every_way_that_programs_write_them(groups, one):
    assert collectives.groups(f"a = f32[] all-reduce(b), {groups}", 8)[0] == one
