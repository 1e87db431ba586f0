"""The plan: what it counts is what there is, what it estimates is near, and it says what fits."""

import math
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.models import sharding
from elm_jax.models.sizes import size
from elm_jax.models.t5 import T5
from elm_jax.runs import activations, plan
from elm_jax.training import optimizers, step

# Wide enough that activations are more than bookkeeping; five layers, so that they are scanned.
NETWORK = size(
    "tiny", emb_dim=128, num_heads=4, head_dim=64, mlp_dim=256, num_encoder_layers=5, num_decoder_layers=5
)
WORK = plan.Work(NETWORK, experts=6, kind="lora", group=4, batch_size=8, prompt=96, answer=24)
ONE = {"expert": 1, "data": 1, "fsdp": 1, "tensor": 1}


@pytest.fixture(scope="module")
def compiled():
    """Compiles a training step of a work, from shapes alone."""

    def compiled(work):
        base, expert = plan.shapes(work)
        optimizer = optimizers.optimizer(work.optimizer)
        state = jax.eval_shape(
            lambda: step.start(
                jax.tree.map(lambda leaf: jnp.zeros((work.group, *leaf.shape)), expert), optimizer
            )
        )
        batch = step.GroupBatch(
            prompts=np.zeros((work.group, work.batch_size, work.prompt), np.int32),
            targets=np.zeros((work.group, work.batch_size, work.answer), np.int32),
            rate=np.zeros(work.group, np.float32),
            dropout=step.dropout_keys(np.zeros(work.group, np.int32), np.zeros(work.group, np.int32)),
            active=np.zeros(work.group, bool),
        )
        run = step.compiled(work.network, work.kind, optimizer)
        return run.lower(state, base, batch).compile().memory_analysis(), batch

    return compiled


def test_parameters_are_those_of_the_published_checkpoints():
    work = plan.Work(size("xl", dtype="bfloat16"))
    found = plan.plan(work, ["h200"])
    assert found.parameters == 2_849_757_184
    assert found.in_all.base == 2 * 2_849_757_184
    # Two stacks of 24 layers with two adapters of 2048 x 64, and the scales of 24 * (2 + 3) + 2 norms.
    adapter = 2 * 2048 * 64 + 64 + 2048
    assert found.expert_parameters == 2 * 24 * 2 * adapter + (24 * 5 + 2) * 2048


@pytest.mark.parametrize("remat", [False, True])
def test_arguments_of_a_step_are_counted_exactly_and_what_lies_between_within_a_factor_of_two(
    compiled, remat
):
    work = replace(WORK, network=replace(NETWORK, remat=remat))
    found, batch = compiled(work)
    needed = plan.need(work, ONE)
    # Without dropout its keys are no arguments.
    rows = sum(leaf.nbytes for leaf in (batch.prompts, batch.targets, batch.rate, batch.active))
    assert found.argument_size_in_bytes == needed.base + needed.state + rows
    between = needed.gradients + (needed.activations_remat if remat else needed.activations)
    assert between / 2 < found.temp_size_in_bytes < 2 * between


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
    assert needed.base < plan.need(WORK, ONE).base / 3


def test_rows_that_a_mesh_does_not_divide_are_on_every_device():
    work = replace(WORK, group=3)
    apart = plan.need(work, ONE | {"expert": 3}).activations
    assert apart == plan.need(replace(WORK, group=1), ONE).activations
    # Neither 3 experts nor 8 rows go into 5 parts.
    assert plan.need(work, ONE | {"expert": 5}).activations == plan.need(work, ONE).activations


def test_an_xl_and_296_experts_fit_a_v4_8_and_one_h200():
    work = plan.Work(size("xl", dtype="bfloat16"), experts=296)
    found = plan.plan(work, ["v4-8", "h200"], {"expert": -1})
    assert [plan.verdicts(share)["evaluation"] for share in found.shares] == ["yes", "yes"]
    assert found.in_all.base + found.in_all.experts == pytest.approx(36e9, rel=0.01)
    shown = plan.table(found)
    cells = {row[0]: row[1:] for row in shown.rows}
    assert cells["296 bottleneck experts of 25.6 M, float32"] == ("30.33", "7.58", "30.33")
    assert cells["evaluation fits"] == ("", "yes", "yes")
    assert cells["mesh"] == ("", "expert=4", "one device")


def test_the_base_is_split_no_further_than_it_must():
    small, large = (
        plan.plan(plan.Work(size(name, dtype="bfloat16"), group=8, batch_size=1), ["v5e-8"]).shares[0]
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
    assert found["shares"][0]["slice"] == {"name": "8xa100-40", "devices": 8, "memory": 40_000_000_000}


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
