"""Traffic: what is predicted is what the compiled programs of eight devices send."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from elm_jax.models import sharding
from elm_jax.models.sizes import size
from elm_jax.runs import collectives, plan, traffic
from elm_jax.training import step

# Five layers, so that they are scanned; rows and widths large enough that what is left out is small.
NETWORK = size(
    "tiny", emb_dim=128, num_heads=4, head_dim=64, mlp_dim=256, num_encoder_layers=5, num_decoder_layers=5
)
WORK = plan.Work(NETWORK, kind="bottleneck", group=8, train_tokens=32 * 120, prompt=96, answer=24, segments=3)
FULL = replace(WORK, kind="full", optimizer="adafactor")
ONE: dict[str, int] = dict.fromkeys(sharding.AXES, 1)
CASES = {
    "data": (WORK, {"data": 8}),
    "fsdp": (WORK, {"fsdp": 8}),
    "expert": (WORK, {"expert": 8}),
    "expert, data and fsdp": (WORK, {"expert": 2, "data": 2, "fsdp": 2}),
    "data and tensor": (WORK, {"data": 2, "tensor": 4}),
    "full, fsdp": (FULL, {"fsdp": 8}),
}


def sent(name):
    """Returns the bytes by axes that the compiled program of a case sends."""
    work, sizes = CASES[name]
    mesh = ONE | sizes
    on = sharding.mesh(None, **mesh)

    def of(*shape, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    def laid(tree, to):
        put = lambda leaf, on: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on)  # noqa: E731
        return jax.tree.map(put, tree, to)

    base, expert = plan.shapes(work)
    places = mesh["expert"] if work.kind == "full" else work.group
    params = jax.tree.map(lambda leaf: of(places, *leaf.shape, dtype=leaf.dtype), expert)
    sums = jax.eval_shape(step.nothing, params)
    count, slots = work.train_tokens // (work.prompt + work.answer), work.segments
    tokens = [of(count, length) for length in (work.prompt, work.prompt, work.answer, work.answer)]
    rows: Any = step.Rows(*tokens, *(of(count, slots, dtype=kind) for kind in ["i4", "f4", "u4"]))
    gather: Any = step.gather(work.network, work.kind)
    program = gather.lower(
        laid(params, sharding.shardings(on, params, experts=True)),
        laid(base, sharding.shardings(on, base)),
        laid(rows, sharding.batch_shardings(on, rows)),
        laid(sums, sharding.shardings(on, sums, experts=True)),
    )
    return collectives.by_axes(collectives.collectives(program.compile().as_text(), mesh))


@pytest.mark.parametrize(
    "name", ["data", "fsdp", *(pytest.param(name, marks=pytest.mark.slow) for name in list(CASES)[2:])]
)
def test_what_a_batch_sends_along_every_set_of_axes_is_predicted_within_three_percent(name):
    work, sizes = CASES[name]
    predicted = collectives.by_axes(traffic.training(work, ONE | sizes))
    assert predicted == pytest.approx(sent(name), rel=0.03)
    assert bool(predicted) == (name != "expert")  # experts apart need nothing of one another


def test_one_device_sends_nothing():
    assert traffic.training(WORK, ONE) == traffic.training(FULL, ONE) == []


def test_experts_gradients_over_data_are_counted_by_hand():
    """An all-reduce of 4 bytes for each parameter of eight experts and for each one's loss."""
    _, expert = plan.shapes(WORK)
    own = sum(leaf.size for leaf in jax.tree.leaves(expert))
    [found] = traffic.training(WORK, ONE | {"data": 8})
    assert (found.kind, found.axes, found.size) == ("all-reduce", ("data",), 8 * 4 * (own + 1))
    assert found.sent == 2 * found.size * 7 / 8


def test_beside_an_expert_axis_gradients_of_every_row_and_segment_are_gathered():
    """Of the 16 rows of a part with three segments each."""
    _, expert = plan.shapes(WORK)
    own = sum(leaf.size for leaf in jax.tree.leaves(expert))
    [found] = traffic.training(WORK, ONE | {"expert": 2, "data": 4})
    assert (found.kind, found.devices, found.size) == ("all-gather", 4, 16 * 3 * own * 4)


def test_a_kernel_is_gathered_for_a_layer_and_again_for_its_gradient():
    """A projection of 128 x 256 in float32, twice for each of five layers, and in bfloat16 half as much."""
    at = "encoder/layers/attention/query/kernel"
    for dtype, width in (("float32", 4), ("bfloat16", 2)):
        work = replace(WORK, network=replace(NETWORK, dtype=dtype))
        [found] = [each for each in traffic.training(work, ONE | {"fsdp": 8}) if each.name == at]
        assert (found.size, found.times, found.devices) == (128 * 256 * width, 2 * 5, 8)
