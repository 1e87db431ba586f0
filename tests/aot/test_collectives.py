"""Collectives in texts written by hand."""

import pytest

from elm_jax.aot import costs
from elm_jax.aot.collectives import Collective, replica_groups
from elm_jax.aot.devices import DEVICE_KINDS

V5E = DEVICE_KINDS["v5e"]
MESH = {"data": 2, "fsdp": 4}


def read(text, mesh=MESH):
    return costs.count_costs(text, V5E, mesh)


def entry(*lines, before=""):
    head = "  %a = bf16[8,128]{1,0} parameter(0)\n"
    return f"{before}ENTRY %main (a: bf16[8,128]) -> bf16[8,128] {{\n{head}" + "\n".join(lines) + "\n}\n"


@pytest.mark.parametrize(
    ("written", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['x'=2,'y'=2] {'x'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['x'=4] {'x':(2)2}", [[0, 1], [2, 3]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
        ("replica_groups={}", [[0, 1, 2, 3]]),
    ],
)
def test_groups_are_read_in_every_form(written, groups):
    assert replica_groups(f"channel_id=1, {written}, dimensions={{0}}", 4) == groups


def test_a_blocking_gather_sends_all_parts_but_its_own():
    found = read(
        entry(
            "  ROOT %g = bf16[32,128]{1,0} all-gather(%a), channel_id=1, "
            "replica_groups=[2,4]<=[8], dimensions={0}"
        )
    )
    whole = 32 * 128 * 2
    assert found.collectives == (
        Collective("all-gather", "bf16", ("fsdp",), 4, False, False, 1, whole, whole * 3 / 4),
    )
    assert found.collective_seconds == pytest.approx(whole * 3 / 4 / (2 * 50e9))


def test_one_that_is_started_and_awaited_is_hidden_and_counts_once():
    found = read(
        entry(
            "  %s = (bf16[8,128]{1,0}, bf16[8,128]{1,0}) all-reduce-start(%a), "
            "replica_groups={{0,4},{1,5},{2,6},{3,7}}",
            "  ROOT %d = bf16[8,128]{1,0} all-reduce-done(%s)",
        )
    )
    assert found.collectives == (
        Collective("all-reduce", "bf16", ("data",), 2, True, False, 1, 2048, 2048.0),
    )
    assert found.collective_seconds == 0.0


# A gather that a fusion starts, another fusion carries on while it computes, and a third awaits.
FUSED = """\
%start (p.0: bf16[8,128]) -> bf16[32,128] {
  %p.0 = bf16[8,128]{1,0} parameter(0)
  %g.0 = bf16[32,128]{1,0} all-gather(%p.0), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}, \
backend_config={"async_collective_fusion_config":{"flag_start":"-1"}}
  ROOT %s.0 = bf16[32,128]{1,0} custom-call(%g.0), custom_call_target="AsyncCollectiveStart"
}
%carry (p.1: bf16[8,128]) -> bf16[8,128] {
  %p.1 = bf16[8,128]{1,0} parameter(0)
  %g.1 = bf16[32,128]{1,0} all-gather(%p.1), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}, \
backend_config={"async_collective_fusion_config":{"flag_start":"2"}}
  ROOT %n = bf16[8,128]{1,0} negate(%p.1)
}
%done (p.2: bf16[8,128]) -> bf16[32,128] {
  %p.2 = bf16[8,128]{1,0} parameter(0)
  %g.2 = bf16[32,128]{1,0} all-gather(%p.2), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}, \
backend_config={"async_collective_fusion_config":{"flag_start":"2"}}
  ROOT %d.2 = bf16[32,128]{1,0} custom-call(%g.2), custom_call_target="AsyncCollectiveDone"
}
"""


def test_a_fused_asynchronous_gather_counts_where_it_starts():
    found = read(
        entry(
            "  %s = bf16[32,128]{1,0} fusion(%a), kind=kCustom, calls=%start",
            "  %c = bf16[8,128]{1,0} fusion(%a), kind=kLoop, calls=%carry, "
            'backend_config={"estimated_cycles":"10"}',
            "  ROOT %d = bf16[32,128]{1,0} fusion(%a), kind=kCustom, calls=%done",
            before=FUSED,
        )
    )
    assert found.collectives == (
        Collective("all-gather", "bf16", ("fsdp",), 4, True, False, 1, 8192, 6144.0),
    )
    assert found.collective_seconds == 0.0


SCATTER = """\
%all-reduce-scatter.1 (p.0: bf16[8,128]) -> bf16[2,128] {
  %p.0 = bf16[8,128]{1,0} parameter(0)
  %r.0 = bf16[8,128]{1,0} all-reduce(%p.0), channel_id=6, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %i.0 = s32[] constant(0)
  ROOT %d.0 = bf16[2,128]{1,0} dynamic-slice(%r.0, %i.0, %i.0), dynamic_slice_sizes={2,128}
}
"""


def test_a_fused_all_reduce_and_slice_is_a_reduce_scatter():
    found = read(
        entry(
            "  ROOT %f = bf16[2,128]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1",
            before=SCATTER,
        )
    )
    assert found.collectives == (
        Collective("reduce-scatter", "bf16", ("fsdp",), 4, False, False, 1, 2048, 1536.0),
    )


def test_what_goes_between_slices_is_told_and_not_priced():
    found = read(
        entry(
            "  %t = token[] after-all()",
            "  ROOT %s = (bf16[8,128]{1,0}, u32[], token[]) send(%a, %t), is_host_transfer=true, "
            'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
            '_xla_megascale_transfer_type="ALL_REDUCE"}',
        )
    )
    assert found.collectives == (Collective("all-reduce", "bf16", (), 0, True, True, 1, 2048, 2048.0),)
    assert found.unpriced == ("1 x all-reduce between slices",)


def test_a_group_of_one_device_sends_nothing():
    line = "  ROOT %r = bf16[8,128]{1,0} all-reduce(%a), replica_groups={{0},{1}}, to_apply=%add"
    assert read(entry(line), {"data": 2}).collectives == ()


def test_collectives_of_one_form_are_one_record():
    line = "bf16[32,128]{1,0} all-gather(%a), replica_groups=[2,4]<=[8], dimensions={0}"
    [both] = read(entry(f"  %g = {line}", f"  ROOT %h = {line}")).collectives
    assert (both.count, both.bytes, both.sent_bytes) == (2, 16384, 12288.0)
