"""The roofline: FLOPs, bytes and seconds by hand."""

from dataclasses import replace

import jax
import pytest

from elm_jax.models import sharding
from elm_jax.models.sizes import T5Config
from elm_jax.runs import flops, plan, rates, roofline, slices
from elm_jax.runs.roofline import Batch, Seconds

# A prompt's token meets 84 parameters of kernels and an answer's 116, see test_flops.
SMALL = T5Config(
    vocab_size=8, emb_dim=4, num_heads=1, head_dim=2, mlp_dim=3, num_encoder_layers=1, num_decoder_layers=1
)
ONE = dict.fromkeys(sharding.AXES, 1)
WORK = plan.Work(SMALL, kind="full", group=1, train_tokens=2 * 14, prompt=10, answer=4, segments=1)
# Two rows: every token attends to its whole row, of 10 and of 4, and answers to 10 more.
ATTENTION = 12 * 1 * 2 * (20 * 10 + 8 * (4 + 10))


def test_a_batch_that_trains_costs_what_its_tokens_do_padding_among_them():
    assert roofline.training(WORK, ONE).flops == 6 * (20 * 84 + 8 * 116) + ATTENTION


def test_with_remat_a_forward_pass_more_is_computed():
    again = replace(WORK, network=replace(SMALL, remat=True))
    assert roofline.training(again, ONE).flops == pytest.approx(roofline.training(WORK, ONE).flops * 4 / 3)


def test_rows_are_shared_out_over_devices_and_the_insides_of_layers_too():
    whole = roofline.training(WORK, ONE).flops
    assert roofline.training(WORK, ONE | {"data": 2}).flops == whole / 2
    assert roofline.training(WORK, ONE | {"tensor": 2}).flops == whole / 2


def test_tokens_of_a_group_pass_the_experts_of_all_segments_of_their_row():
    """A bottleneck of width 1 has 8 parameters after each of four blocks; a frozen base costs 4."""
    group = replace(WORK, kind="bottleneck", options={"width": 1}, group=4, segments=3)
    expected = 4 * (20 * 84 + 8 * 116) + 3 * 6 * (20 * 16 + 8 * 16) + ATTENTION
    assert roofline.training(group, ONE).flops == expected
    alone = replace(group, group=1)
    assert roofline.training(alone, ONE).flops == expected - 2 * 6 * (20 * 16 + 8 * 16)


def test_scoring_costs_a_forward_pass():
    work = plan.Work(SMALL, prompt=10, answer=4, batch_tokens=2 * 14)
    assert roofline.scoring(work).flops == pytest.approx(2 * (20 * 84 + 8 * 116) + ATTENTION / 3)
    beside = roofline.scoring(replace(work, experts=3, options={"width": 1})).flops
    assert beside == pytest.approx(roofline.scoring(work).flops + 2 * 16 * 28)


def test_moving_reads_and_writes_parameters_moments_and_gradients():
    group = replace(WORK, kind="bottleneck", group=4)
    _, expert = plan.shapes(group)
    own = sum(leaf.size for leaf in jax.tree.leaves(expert))
    # Parameters, two moments and gradients in float32, and a step, a mark and a loss of each.
    assert roofline.training(group, ONE).moved == 2 * 4 * (4 * 4 * own + 3 * 4)


def test_seconds_wait_for_the_slower_of_products_and_memory_and_then_for_traffic():
    device = rates.Rates(flops=100.0, memory=10.0, ring=2.0, host=1)
    found = Batch(flops=80.0, bytes=4.0, sent={"data": 3.0, "fsdp": 1.0}, moved=8.0).seconds(device)
    assert found == Seconds(compute=80 / (0.4 * 100), memory=4 / (0.8 * 10), traffic=4 / 2, moving=1.0)
    assert found.together == 2.0 + 2.0 + 1.0
    assert replace(found, memory=5.0).together == 5.0 + 2.0 + 1.0


@pytest.mark.parametrize(
    ("name", "flop", "memory", "ring", "host"),
    [
        ("v4-8", 275, 1200, 100, 4),
        ("v5litepod-8", 197, 819, 100, 8),
        ("v5e-256", 197, 819, 100, 4),
        ("v5p-16", 459, 2765, 200, 4),
        ("v6e-4", 918, 1638, 200, 4),
        ("a100-40", 312, 1555, 300, 1),
        ("8xh100", 989, 3350, 450, 8),
        ("16xh200", 989, 4800, 50, 8),
    ],
)
def test_rates_are_those_of_the_vendors(name, flop, memory, ring, host):
    """TFLOP/s, and GB/s of memory and of a ring: two links of a TPU's torus, NVLink, or a network card."""
    found = rates.rates_of(slices.slice_of(name))
    assert (found.flops / 1e12, found.memory / 1e9, found.ring / 1e9, found.host) == (
        flop,
        memory,
        ring,
        host,
    )


def test_every_device_with_a_published_peak_has_all_rates():
    names = {f"{name}-8" if name in slices.TPUS else name for name in flops.PEAKS}
    assert all(rates.rates_of(slices.slice_of(name)).flops for name in names)
