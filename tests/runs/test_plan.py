"""The plan: what it counts is what there is, what it estimates is near, and it says what fits."""

import math
from dataclasses import asdict, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.models import sharding
from elm_jax.models.sizes import size
from elm_jax.models.t5 import T5
from elm_jax.runs import activations, outlook, plan
from elm_jax.training import optimizers, step

# Wide enough that activations are more than bookkeeping; five layers, so that they are scanned.
NETWORK = size(
    "tiny", emb_dim=128, num_heads=4, head_dim=64, mlp_dim=256, num_encoder_layers=5, num_decoder_layers=5
)
# A batch of 32 rows of three examples at most.
WORK = plan.Work(
    NETWORK, experts=6, kind="lora", group=4, train_tokens=32 * 120, prompt=96, answer=24, segments=3
)
ONE = {"expert": 1, "data": 1, "fsdp": 1, "tensor": 1}


def shape(*sizes, dtype=jnp.int32) -> Any:
    return jax.ShapeDtypeStruct(sizes, dtype)


def nbytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def compiled():
    """Compiles the programs of a work, from shapes alone; returns what each takes, and the rows."""

    def compiled(work):
        base, expert = plan.shapes(work)
        optimizer = optimizers.optimizer(work.optimizer)
        places = 1 if work.kind == "full" else work.group
        params = jax.tree.map(lambda leaf: shape(places, *leaf.shape, dtype=leaf.dtype), expert)
        state = jax.eval_shape(lambda params: step.start(params, optimizer), params)
        sums = jax.eval_shape(step.nothing, params)
        count, segments = work.train_tokens // (work.prompt + work.answer), work.segments
        prompts, answers = shape(count, work.prompt), shape(count, work.answer)
        rows: Any = step.Rows(
            prompts,
            prompts,
            answers,
            answers,
            shape(count, segments),
            shape(count, segments, dtype=jnp.float32),
            shape(count, segments, dtype=jnp.uint32),
        )
        move = step.Move(shape(places, dtype=jnp.float32), shape(places, dtype=jnp.bool_), shape(places))
        gather = step.gather(work.network, work.kind).lower(params, base, rows, sums)
        advance = step.advance(optimizer).lower(state, sums, move)
        return *(each.compile().memory_analysis() for each in (gather, advance)), rows, move

    return compiled


def test_parameters_are_those_of_the_published_checkpoints():
    work = plan.Work(size("xl", dtype="bfloat16"))
    found = plan.plan(work, ["h200"])
    assert found.parameters == 2_849_757_184
    assert found.in_all.base == 2 * 2_849_757_184
    # Two stacks of 24 layers with two adapters of 2048 x 64, and the scales of 24 * (2 + 3) + 2 norms.
    adapter = 2 * 2048 * 64 + 64 + 2048
    assert found.expert_parameters == 2 * 24 * 2 * adapter + (24 * 5 + 2) * 2048


WORKS = {
    "lora": WORK,
    "remat": replace(WORK, network=replace(NETWORK, remat=True)),
    "one for all": replace(WORK, group=1),
    "ia3": replace(WORK, kind="ia3"),
}


@pytest.mark.parametrize("name", WORKS)
def test_arguments_of_a_step_are_counted_exactly_and_what_lies_between_within_a_factor_of_two(compiled, name):
    work = WORKS[name]
    gather, advance, rows, move = compiled(work)
    needed = plan.need(work, ONE)
    # Without dropout its seeds are no arguments; a batch has no moments.
    params = needed.gradients - 4 * work.group  # all but the losses
    used = nbytes(rows._replace(seeds=None)) - nbytes(rows.place) * (work.group == 1)
    assert advance.argument_size_in_bytes == needed.state + needed.gradients + nbytes(move)
    if work.group > 1:
        assert gather.argument_size_in_bytes == needed.base + params + needed.gradients + used
    between = needed.activations_remat if work.network.remat else needed.activations
    assert between / 2 < max(gather.temp_size_in_bytes, advance.temp_size_in_bytes) < 2 * between


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("kind", ["bottleneck", "full"])
def test_experts_with_parameters_of_the_base_are_counted_too(compiled, kind, optimizer):
    work = replace(WORK, kind=kind, optimizer=optimizer)
    gather, advance, _, move = compiled(work)
    needed = plan.need(work, ONE)
    assert advance.argument_size_in_bytes == needed.state + needed.gradients + nbytes(move)
    found = max(gather.temp_size_in_bytes, advance.temp_size_in_bytes)
    assert needed.activations / 2 < found < 2 * needed.activations


def test_where_moving_takes_more_than_a_batch_it_is_what_counts(compiled):
    work = replace(WORK, kind="bottleneck", options={"width": 64}, group=32, train_tokens=120, segments=1)
    gather, advance, *_ = compiled(work)
    needed = plan.need(work, ONE)
    assert advance.temp_size_in_bytes > gather.temp_size_in_bytes
    assert needed.activations == 3 * (needed.gradients - 4 * 32)
    assert needed.activations / 2 < advance.temp_size_in_bytes < 2 * needed.activations


def test_what_lies_between_when_scoring_is_within_a_factor_of_two():
    rows, prompt, answer = 16, 192, 8
    base, _ = plan.shapes(WORK)

    def states(params, prompts, answers):
        def network(method, *arguments):
            return T5(NETWORK).apply({"params": params}, *arguments, method=method)

        return network("decode_hidden", network("encode", prompts), prompts, answers)

    tokens = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((rows, prompt), (rows, 1, answer))]
    report = jax.jit(states).lower(base, *tokens).compile().memory_analysis()
    assert report is not None
    logits = 8 * rows * answer * NETWORK.vocab_size  # which this does not make
    estimated = activations.scoring(NETWORK, rows, prompt, answer) - logits
    assert estimated / 2 < report.temp_size_in_bytes < 2 * estimated


def test_a_device_of_a_mesh_holds_what_the_plan_says():
    sizes = {"expert": 2, "data": 1, "fsdp": 2, "tensor": 2}
    on = sharding.mesh(expert=2, data=1, fsdp=2, tensor=2)
    base, expert = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), plan.shapes(WORK))

    def of_a_device(tree, experts=False):
        placed = sharding.place(tree, sharding.shardings(on, tree, experts=experts))
        leaves = [leaf.addressable_shards for leaf in jax.tree.leaves(placed)]
        return {sum(shards[device].data.nbytes for shards in leaves) for device in range(8)}

    needed = plan.need(WORK, sizes)
    assert of_a_device(base) == {needed.base}
    assert of_a_device(step.stack([expert] * 6), experts=True) == {needed.experts}
    state = step.start(step.stack([expert] * 4), optimizers.optimizer("adamw"))
    assert of_a_device(state, experts=True) == {needed.state}
    assert of_a_device(step.nothing(state.params), experts=True) == {needed.gradients}
    assert needed.base < plan.need(WORK, ONE).base / 3


def test_rows_and_places_are_what_a_group_makes_of_them():
    """A mesh has a multiple of rows of its devices, and of places of its parts; see `engine.group`."""
    work = replace(WORK, group=3)
    apart = plan.need(work, ONE | {"expert": 2})
    assert apart.state == plan.need(replace(work, group=2), ONE).state  # two of four places
    # 32 rows are 16 for either of two devices, and 10 for each of three.
    for parts, rows in ((2, 16), (3, 10)):
        two = replace(work, group=2)
        alone = plan.need(replace(two, train_tokens=rows * 120), ONE).activations
        assert plan.need(replace(two, group=2 * parts), ONE | {"expert": parts}).activations == alone
    few = replace(work, train_tokens=1)
    assert (
        plan.need(few, ONE | {"data": 4}).activations
        == plan.need(replace(few, train_tokens=120), ONE).activations
    )


def test_a_part_of_a_mesh_has_one_full_expert_whatever_the_group():
    full = replace(WORK, kind="full")
    one, two = plan.need(full, ONE), plan.need(full, ONE | {"expert": 2})
    assert one.state == two.state == plan.need(replace(full, group=1), ONE).state
    assert one.state == 3 * one.base + 8  # parameters and two moments; its count, and whether it stopped


def test_what_segments_gather_is_counted_by_hand():
    """One LoRA of rank 2 at queries and values, of 4 tokens and 1, two segments; w is 4 bytes."""
    network = replace(NETWORK, num_encoder_layers=1, num_decoder_layers=1)
    _, expert = plan.shapes(replace(WORK, network=network, options={"rank": 2}))
    of_attention = 2 * (128 + 256) * 2  # two projections, two factors of rank 2
    encoder = 4 * (2 * of_attention + 4 * 2 * 4 * 2)  # four kernels
    decoder = 4 * (2 * 2 * of_attention + 1 * 2 * 8 * 2)
    assert activations.gathered(network, expert, 3, 2, 4, 1) == 3 * (encoder + decoder)
    again = replace(network, remat=True)
    assert activations.gathered(again, expert, 3, 2, 4, 1) == 3 * max(encoder, decoder)


def test_an_xl_and_296_experts_fit_a_v4_8_and_one_h200():
    work = plan.Work(size("xl", dtype="bfloat16"), experts=296)
    found = plan.plan(work, ["v4-8", "h200"], {"expert": -1})
    assert [plan.verdicts(share)["evaluation"] for share in found.shares] == ["yes", "yes"]
    assert found.in_all.base + found.in_all.experts == pytest.approx(36e9, rel=0.01)
    shown = outlook.memory(found)
    cells = {row[0]: row[1:] for row in shown.rows}
    assert cells["296 bottleneck experts of 25.6 M, float32"] == ("30.33", "7.58", "30.33")
    assert cells["evaluation fits"] == ("", "yes", "yes")
    assert cells["mesh"] == ("", "expert=4", "one device")


def test_the_base_is_split_no_further_than_it_must():
    small, large = (
        plan.plan(plan.Work(size(name, dtype="bfloat16"), group=8), ["v5e-8"]).shares[0]
        for name in ("large", "xxl")
    )
    assert small.mesh == ONE | {"expert": 8}
    assert large.mesh["fsdp"] > 1
    assert math.prod(large.mesh.values()) == 8


def test_what_fits_only_if_the_estimate_holds_is_perhaps():
    assert plan.verdict(60, 20, memory=100) == "yes"
    assert plan.verdict(60, 30, memory=100) == "perhaps"
    assert plan.verdict(60, 41, memory=100) == "no"


def test_a_plan_is_plain_values():
    found = asdict(plan.plan(WORK, ["8xa100-40"], {"fsdp": -1}))
    assert found["shares"][0]["mesh"] == ONE | {"fsdp": 8}
    assert found["shares"][0]["slice"] == {
        "name": "8xa100-40",
        "devices": 8,
        "memory": 40_000_000_000,
        "kind": "a100-40",
    }


@pytest.mark.parametrize(
    ("name", "devices", "memory"),
    [("v3-8", 8, 16), ("v4-8", 4, 32), ("v5p-8", 4, 95), ("v5litepod-16", 16, 16), ("H100", 1, 80)],
)
def test_slices_go_by_their_vendors_names(name, devices, memory):
    found = plan.slice_of(name)
    assert (found.devices, found.memory) == (devices, memory * 10**9)


@pytest.mark.parametrize(
    ("name", "said"),
    [("v4-7", "multiple of 2"), ("v4-0", "multiple of 2"), ("v7-8", "No TPU named 'v7'"), ("3080", "8xh100")],
)
def test_a_slice_that_is_none_is_one_sentence(name, said):
    with pytest.raises(UserError, match=said):
        plan.slice_of(name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "lorra"}, "An expert kind is wanted"),
        ({"options": {"width": 4}}, "An option of 'lora' experts is wanted"),
        ({"optimizer": "adam"}, "Did you mean 'adamw'"),
        ({"expert_dtype": "float16"}, "A dtype is wanted"),
        ({"prompt": 0}, "At least 1 is wanted for prompt"),
        ({"experts": -1}, "0 or more"),
    ],
)
def test_a_work_that_cannot_be_is_one_sentence(change, said):
    with pytest.raises(UserError, match=said):
        plan.plan(replace(WORK, **change), ["h200"])
