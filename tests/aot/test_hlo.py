"""Texts written by hand, whose sums can be worked out."""

import pytest

from elm_jax.aot import costs, hlo, loops
from elm_jax.aot.devices import DEVICE_KINDS

V5E = DEVICE_KINDS["v5e"]
# A loop of five rounds with a product in a fusion: 2 x 8 x 16 x 4 FLOPs and 100 cycles a round.
LOOP = """\
HloModule jit_f, is_scheduled=true

%fused (p.0: bf16[8,16], p.1: bf16[16,4]) -> bf16[8,4] {
  %p.0 = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = bf16[16,4]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = bf16[8,4]{1,0} convolution(%p.0, %p.1), dim_labels=bf_io->bf
}

%body (t: (s32[], bf16[8,16], bf16[16,4])) -> (s32[], bf16[8,16], bf16[16,4]) {
  %t = (s32[]{:T(128)}, bf16[8,16]{1,0}, /*index=2*/bf16[16,4]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  %x = bf16[8,16]{1,0} get-tuple-element(%t), index=1
  %w = bf16[16,4]{1,0} get-tuple-element(%t), index=2
  %step = s32[]{:T(128)} constant(STEP)
  %copied = s32[]{:T(128)S(6)} copy(%i)
  %next = s32[]{:T(128)} add(%copied, %step)
  %y = bf16[8,4]{1,0} fusion(%x, %w), kind=kOutput, calls=%fused, \
backend_config={"window_config":{"estimated_cycles":"100"}}
  ROOT %out = (s32[]{:T(128)}, bf16[8,16]{1,0}, bf16[16,4]{1,0}) tuple(%next, %x, %w)
}

%condition (t.1: (s32[], bf16[8,16], bf16[16,4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(LIMIT)
  %t.1 = (s32[]{:T(128)}, bf16[8,16]{1,0}, bf16[16,4]{1,0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%t.1), index=0
  ROOT %more = pred[]{:T(512)} compare(%i.1, %limit), direction=DIRECTION
}

ENTRY %main (x.1: bf16[8,16], w.1: bf16[16,4]) -> s32[] {
  %x.1 = bf16[8,16]{1,0} parameter(0)
  %w.1 = bf16[16,4]{1,0} parameter(1)
  %begin = s32[]{:T(128)} constant(BEGIN)
  %t.2 = (s32[]{:T(128)}, bf16[8,16]{1,0}, bf16[16,4]{1,0}) tuple(%begin, %x.1, %w.1)
  %loop = (s32[]{:T(128)}, bf16[8,16]{1,0}, bf16[16,4]{1,0}) while(%t.2), condition=%condition, body=%body
  ROOT %last = s32[]{:T(128)} get-tuple-element(%loop), index=0
}
"""


def loop(begin=0, step=1, limit=5, direction="LT"):
    text = LOOP.replace("BEGIN", str(begin)).replace("STEP", str(step))
    return text.replace("LIMIT", str(limit)).replace("DIRECTION", direction)


def entry(lines, before=""):
    return f"{before}\nENTRY %main (a: f32[8,128]) -> f32[8,128] {{\n{lines}\n}}\n"


@pytest.mark.parametrize(
    ("counter", "trips"),
    [
        ({}, 5),
        ({"begin": 1}, 4),  # the first round stands before the loop
        ({"step": 2, "limit": 8}, 4),  # a windowed product, two parts a round
        ({"step": 2, "limit": 5}, 3),
        ({"direction": "LE"}, 6),
        ({"direction": "NE"}, 5),
        ({"begin": 4, "step": -1, "limit": 0, "direction": "GE"}, 5),
        ({"limit": 0}, 0),
    ],
)
def test_a_loop_runs_from_its_first_value_by_its_step_to_its_limit(counter, trips):
    module = hlo.parse(loop(**counter))
    assert loops.count_trips(module, module.entry, module.entry.by_name["loop"]) == trips


def test_known_trip_counts_of_other_platforms_are_taken_as_they_are():
    text = loop().replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
    module = hlo.parse(text)
    assert loops.count_trips(module, module.entry, module.entry.by_name["loop"]) == 7


def test_a_loop_multiplies_flops_and_cycles():
    found = costs.count_costs(loop(), V5E, {"data": 1})
    assert found.flops == 5 * 2 * 8 * 16 * 4
    assert found.cycle_seconds == 5 * 100 / 1.503e9
    assert found.unpriced == ()


def test_a_loop_of_unknown_length_counts_once_and_is_named():
    text = loop().replace("add(%copied, %step)", "multiply(%copied, %step)")
    found = costs.count_costs(text, V5E, {"data": 1})
    assert found.flops == 2 * 8 * 16 * 4
    assert found.unpriced == ("1 x loop of unknown length, counted as one run",)


def test_a_batch_as_a_window_counts_only_what_falls_on_an_element():
    # Three products of [2, 5] with [5, 7]: the window of 3 is dilated so that each row meets its own.
    line = (
        "  ROOT %c = f32[3,2,7]{2,1,0} convolution(%a, %b), "
        "window={size=3 stride=2 pad=2_2 lhs_dilate=3 rhs_reversal=1}, dim_labels=0bf_0io->0bf"
    )
    text = entry(f"  %a = f32[3,2,5]{{2,1,0}} parameter(0)\n  %b = f32[3,5,7]{{2,1,0}} parameter(1)\n{line}")
    assert costs.count_costs(text, V5E, {"data": 1}).flops == 3 * 2 * 2 * 5 * 7


def test_a_dot_counts_its_contracted_axes():
    text = entry(
        "  %a = f32[4,6,5]{2,1,0} parameter(0)\n  %b = f32[4,5,7]{2,1,0} parameter(1)\n"
        "  ROOT %c = f32[4,6,7]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, rhs_batch_dims={0}, "
        "lhs_contracting_dims={2}, rhs_contracting_dims={1}, operand_precision={highest,highest}"
    )
    [(product, times)] = costs.list_products(text)
    assert (product.flops, times) == (2 * 4 * 6 * 5 * 7, 1)
    assert (product.operands, product.result, product.precision) == (("f32", "f32"), "f32", "highest")


def test_moves_without_cycles_cost_their_bytes_in_whole_tiles():
    # A copy reads and writes; [8, 100] takes a tile of [8, 128]; what lies in VMEM, S(1), costs nothing.
    text = entry(
        "  %a = f32[8,100]{1,0:T(8,128)} parameter(0)\n"
        "  %b = f32[8,100]{1,0:T(8,128)} copy(%a)\n"
        "  ROOT %c = f32[8,100]{1,0:T(8,128)S(1)} copy(%b)"
    )
    assert costs.count_costs(text, V5E, {"data": 1}).move_seconds == pytest.approx(3 * 8 * 128 * 4 / 819e9)


@pytest.mark.parametrize(
    ("kind", "cycles", "flops", "moved", "seconds"),
    [
        ("v5e", 1503, 1970, 819, 1e-6),
        ("v4", 2100, 1970, 819, 1e-6),  # two cores of 1.05 GHz
        ("v5e", 1, 197_000_000, 819, 1e-6),
        ("v5e", 1, 1970, 819_000, 1e-6),
    ],
    ids=["schedule", "schedule of two cores", "products", "memory"],
)
def test_a_kernel_costs_the_longest_of_what_it_states(kind, cycles, flops, moved, seconds):
    stated = f'kernel_metadata={{\n"cycles_v6e":"7",\n"cycles_{kind}":"{cycles}"\n}}'
    cost = f'"cost_estimate":{{"flops":"{flops}","transcendentals":"3","bytes_accessed":"{moved}"}}'
    text = entry(
        "  %a = f32[8,128]{1,0:T(8,128)} parameter(0)\n"
        '  %k = (f32[8,128]{1,0:T(8,128)}) custom-call(%a), custom_call_target="tpu_custom_call", '
        f'frontend_attributes={{{stated}}}, backend_config={{"custom_call_config":{{{cost}}}}}\n'
        f"  ROOT %g = f32[8,128]{{1,0:T(8,128)}} get-tuple-element(%k), index=0, "
        f"frontend_attributes={{{stated}}}"
    )
    found = costs.count_costs(text, DEVICE_KINDS[kind], {"data": 1})
    assert (found.kernel_seconds, found.seconds) == (pytest.approx(seconds), pytest.approx(seconds))
    assert (found.flops, found.unpriced) == (flops, ())


def test_an_update_of_a_slice_costs_the_slice_alone():
    text = entry(
        "  %a = f32[1024,8,128]{2,1,0:T(8,128)} parameter(0)\n"
        "  %u = f32[1,8,128]{2,1,0:T(8,128)} parameter(1)\n"
        "  %i = s32[]{:T(128)} parameter(2)\n"
        "  ROOT %d = f32[1024,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%a, %u, %i, %i, %i)"
    )
    assert costs.count_costs(text, V5E, {"data": 1}).move_seconds == pytest.approx(2 * 8 * 128 * 4 / 819e9)


def test_a_fusion_that_cuts_from_an_array_reads_what_it_cuts():
    def seconds(further=""):
        rows = (
            "offset_dims={1,2}, collapsed_slice_dims={0}, start_index_map={0}, index_vector_dim=1, "
            "slice_sizes={1,8,128}"
        )
        inner = (
            "%fused (p: f32[64,8,128], q: s32[2,1]) -> f32[2,8,128] {\n"
            "  %p = f32[64,8,128]{2,1,0:T(8,128)} parameter(0)\n"
            "  %q = s32[2,1]{1,0:T(2,128)S(1)} parameter(1)\n"
            "  %b = f32[64,8,128]{2,1,0:T(8,128)} bitcast(%p)\n"
            + further
            + f"  ROOT %g = f32[2,8,128]{{2,1,0:T(8,128)}} gather(%b, %q), {rows}\n}}\n"
        )
        text = entry(
            "  %a = f32[64,8,128]{2,1,0:T(8,128)} parameter(0)\n"
            "  %i = s32[2,1]{1,0:T(2,128)S(1)} parameter(1)\n"
            "  ROOT %f = f32[2,8,128]{2,1,0:T(8,128)S(1)} fusion(%a, %i), kind=kCustom, calls=%fused"
        )
        return costs.count_costs(inner + text, V5E, {"data": 1}).move_seconds

    assert seconds() == pytest.approx(2 * 8 * 128 * 4 / 819e9)
    # Anything else that reads the array reads all of it.
    assert seconds("  %n = f32[64,8,128]{2,1,0:T(8,128)} negate(%p)\n") == pytest.approx(
        64 * 8 * 128 * 4 / 819e9
    )


def test_a_fusion_that_scatters_in_place_costs_the_updates_alone():
    inner = (
        "%fused (p: f32[64,8,128], q: s32[2,1], u: f32[2,8,128]) -> f32[64,8,128] {\n"
        "  %p = f32[64,8,128]{2,1,0:T(8,128)} parameter(0)\n"
        "  %q = s32[2,1]{1,0:T(2,128)S(1)} parameter(1)\n"
        "  %u = f32[2,8,128]{2,1,0:T(8,128)} parameter(2)\n"
        "  ROOT %s = f32[64,8,128]{2,1,0:T(8,128)} scatter(%p, %q, %u), update_window_dims={1,2}\n}\n"
    )
    text = entry(
        "  %a = f32[64,8,128]{2,1,0:T(8,128)} parameter(0)\n"
        "  %i = s32[2,1]{1,0:T(2,128)S(1)} parameter(1)\n"
        "  %b = f32[2,8,128]{2,1,0:T(8,128)} parameter(2)\n"
        "  ROOT %f = f32[64,8,128]{2,1,0:T(8,128)} fusion(%a, %i, %b), kind=kCustom, calls=%fused"
    )
    # The updates are read, and the rows that they are added to are read and written.
    assert costs.count_costs(inner + text, V5E, {"data": 1}).move_seconds == pytest.approx(
        3 * 2 * 8 * 128 * 4 / 819e9
    )


def test_custom_calls_are_named_and_not_priced():
    text = entry(
        "  %a = f32[8,128]{1,0} parameter(0)\n"
        '  %b = f32[8,128]{1,0} custom-call(), custom_call_target="AllocateBuffer"\n'
        '  ROOT %c = f32[8,128]{1,0} custom-call(%a), custom_call_target="tpu_custom_call"'
    )
    found = costs.count_costs(text, V5E, {"data": 1})
    assert found.unpriced == ("1 x custom call tpu_custom_call",)
    assert found.seconds == 0.0


def test_costs_go_through_json():
    found = costs.count_costs(loop(), V5E, {"data": 1})
    assert costs.Costs.from_json(found.to_json()) == found


def test_a_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="entry computation"):
        hlo.parse("HloModule nothing")
