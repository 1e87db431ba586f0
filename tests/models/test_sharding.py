"""Sharding: every layout gives what one device gives, and no device has what others keep for it."""

import math
import re
from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from elm_jax.errors import UserError
from elm_jax.models import expert_layers as ex
from elm_jax.models import meshes, paths, sharding
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import T5, init_params
from elm_jax.training import optimizers, step
from elm_jax.training.config import LossConfig, OptimizerConfig
from elm_jax.training.loss import token_losses

# Five layers, so that they are scanned; every width another number, so that a shape tells what it is of.
CONFIG = find_config(
    "tiny",
    vocab_size=104,
    emb_dim=32,
    num_heads=8,
    head_dim=6,
    mlp_dim=80,
    num_encoder_layers=5,
    num_decoder_layers=5,
)
RNG = np.random.default_rng(5)
PROMPTS = RNG.integers(1, 104, (16, 7)).astype(np.int32)
TARGETS = RNG.integers(1, 104, (16, 3)).astype(np.int32)
PROMPTS[1, 4:] = TARGETS[2, 2:] = 0
LAYOUTS = {
    "data": {"data": 8},
    "fsdp": {"fsdp": 8},
    "tensor": {"tensor": 8},
    "data, fsdp and tensor": {"data": 2, "fsdp": 2, "tensor": 2},
}
MIXED = (("expert", 2), ("fsdp", 2), ("tensor", 2))
COLLECTIVES = r"(?:all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("


def drawn(make, *leading):
    """Returns a tree of that form with scales of one and else random leaves, with axes more in front."""
    flat = paths.flatten(jax.eval_shape(make))
    return paths.unflatten(
        {
            path: np.ones((*leading, *leaf.shape), np.float32)
            if path.endswith("scale")
            else RNG.normal(0, leaf.shape[-2] ** -0.5, (*leading, *leaf.shape)).astype(np.float32)
            for path, leaf in flat.items()
        }
    )


@pytest.fixture(scope="module")
def base():
    return drawn(lambda: init_params(jax.random.key(0), CONFIG))


def on(**sizes):
    return meshes.make_mesh(**({"data": 1} | sizes))  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def run(base):
    """Compiles loss and gradients for a layout, once; returns the program and what it gives."""

    def loss(params, prompts, targets):
        logits = T5(CONFIG).apply({"params": params}, prompts, targets[:, None])
        return token_losses(jnp.asarray(logits)[:, 0], targets).mean()

    @lru_cache
    def run(layout=None):
        params, rows, like = base, (PROMPTS, TARGETS), None
        if layout:
            there = on(**LAYOUTS[layout])
            like = sharding.param_shardings(there, base)
            params = jax.device_put(base, like)
            rows = jax.device_put(rows, sharding.batch_shardings(there, rows))
        program = jax.jit(jax.value_and_grad(loss), out_shardings=(None, like)).lower(params, *rows).compile()
        return program.as_text(), *jax.tree.map(np.asarray, program(params, *rows))

    return run


def shapes(text, operation=r"[\w-]+\("):
    """Returns the shapes of float results, on one device, of operations of a name."""
    results = re.findall(rf"= (\S+|\([^=]*?\)) {operation}", text)
    found = [re.findall(r"(?:f32|bf16)\[([\d,]+)\]", result) for result in results]
    return {tuple(map(int, shape.split(","))) for result in found for shape in result}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_loss_and_the_gradients_of_one_device(run, layout):
    _, wanted_loss, wanted = run()
    _, loss, found = run(layout)
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-5)
    for one, same in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, same, rtol=1e-5, atol=1e-5 * np.abs(same).max())


def test_with_fsdp_no_parameter_is_ever_whole_and_one_kernel_of_one_layer_is_the_most_that_is_gathered(
    run, base
):
    """What "no full parameter is gathered" is held to, in the program that every device runs:

    no operation at all, a gradient's included, has a result of the shape of a parameter that `fsdp` splits,
    be it a stack [L, …], the table of embeddings or the output layer; and no all-gather, whatever it gathers,
    gives more than the largest kernel of one layer. With `data` alone every parameter is there whole.
    """
    specs = sharding.param_shardings(on(fsdp=8), base)
    whole = {
        leaf.shape
        for leaf, to in zip(jax.tree.leaves(base), jax.tree.leaves(specs), strict=True)
        if "fsdp" in to.spec
    }
    assert {(104, 32), (32, 104), (5, 32, 80), (5, 80, 32), (5, 32, 48), (5, 48, 32)} == whole
    assert whole <= shapes(run("data")[0])
    text = run("fsdp")[0]
    assert not whole & shapes(text)
    gathered = shapes(text, r"all-gather(?:-start)?\(")
    assert max(math.prod(shape) for shape in gathered) == 32 * 80


@pytest.mark.parametrize("layout", ["fsdp", "data, fsdp and tensor"])
def test_no_device_works_on_all_rows(run, layout):
    every_row = {shape for shape in shapes(run("tensor")[0]) if shape[:2] == (16, 7) or shape[0] == 16 * 7}
    assert {(112, 32), (16, 7, 32)} <= every_row
    # Embeddings are looked up for the rows of the devices that share a table, in a part of the width.
    assert {shape for shape in shapes(run(layout)[0]) if shape in every_row} <= {(16, 7, 4)}


@pytest.fixture(scope="module")
def group(base):
    """Steps four experts, on one device or on a mesh; returns the programs, the new state and the losses.

    Rows are packed, those of each part of the mesh with examples of its own two experts.
    """
    config = replace(CONFIG, num_encoder_layers=1, num_decoder_layers=1)
    first = {path: leaf[:1] if "/layers/" in path else leaf for path, leaf in paths.flatten(base).items()}
    base = paths.unflatten(first)
    optimizer = optimizers.make_optimizer(OptimizerConfig())
    made = drawn(lambda: ex.init_expert("bottleneck", jax.random.key(1), base, {"width": 4}), 4)
    segments = np.repeat(np.array([[1, 1, 1, 2, 2, 2, 2]], np.int32), 16, axis=0)
    of_targets = np.repeat(np.array([[1, 1, 2]], np.int32), 16, axis=0)
    place = np.repeat(np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.int32), 4, axis=0)
    rows = step.Rows(
        PROMPTS,
        np.where(PROMPTS > 0, segments, 0),
        TARGETS,
        np.where(TARGETS > 0, of_targets, 0),
        place,
        RNG.uniform(0.5, 1.5, place.shape).astype(np.float32),
        np.zeros(place.shape, np.uint32),
    )
    move = step.SlotUpdates(
        np.array([1e-3, 2e-3, 0.0, 1e-2], np.float32),
        np.array([True, True, True, False]),
        np.zeros(4, np.int32),
    )

    @lru_cache
    def group(*sizes):
        # On one device the second half of the rows is that of the last two experts; on a mesh they are the
        # first two of the second part.
        numbered = rows if sizes else rows._replace(slot=place + 2 * (np.arange(16) >= 8)[:, None])
        state = step.initial_state(jax.tree.map(jnp.asarray, made), optimizer)
        sums, laid, beneath = step.zero_accumulator(state.params), numbered, base
        if sizes:
            there = on(**dict(sizes))
            state, sums = (
                jax.device_put(tree, sharding.param_shardings(there, tree, experts=True))
                for tree in (state, sums)
            )
            beneath = jax.device_put(base, sharding.param_shardings(there, base))
            laid = jax.device_put(numbered, sharding.batch_shardings(there, numbered))
        gather = step.accumulate(config, "bottleneck").lower(state.params, beneath, laid, sums).compile()
        sums = gather(state.params, beneath, laid, sums)
        advance = step.apply_update(optimizer).lower(state, sums, move).compile()
        state, rest, loss = advance(state, sums, move)
        return (gather.as_text(), advance.as_text()), (state, rest), loss

    return group


def test_experts_on_a_mesh_step_as_they_do_on_one_device(group):
    _, wanted, wanted_loss = group()
    _, found, loss = group(*MIXED)
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-5)
    # What Adam keeps has the gradients; its first step has little more than their signs. Those of the one
    # that does not move are in the sums.
    for one, same in zip(
        jax.tree.leaves((found[0].moments, found[1])),
        jax.tree.leaves((wanted[0].moments, wanted[1])),
        strict=True,
    ):
        np.testing.assert_allclose(one, same, rtol=1e-5, atol=1e-5 * np.abs(same).max())
    assert all(leaf.sharding.spec[0] == "expert" for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize(
    ("kind", "options"),
    [("dora", {"rank": 2}), ("vera", {"rank": 4, "projections": ("query", "wo")}), ("prompt", {"tokens": 2})],
)
def test_other_kinds_and_the_loss_of_choices_have_the_gradients_of_one_device(base, kind, options):
    config = replace(CONFIG, num_encoder_layers=1, num_decoder_layers=1)
    first = {path: leaf[:1] if "/layers/" in path else leaf for path, leaf in paths.flatten(base).items()}
    base = paths.unflatten(first)
    made = drawn(lambda: ex.init_expert(kind, jax.random.key(1), base, options), 4)
    place = np.repeat(np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.int32), 4, axis=0)
    share = np.full(place.shape, 0.1, np.float32)
    whole = np.ones_like(TARGETS)
    rows = step.Rows(
        np.maximum(PROMPTS, 1),
        np.repeat(np.array([[1, 1, 1, 2, 2, 2, 2]], np.int32), 16, axis=0),
        np.maximum(TARGETS, 1),
        whole * np.array([[1, 1, 2]], np.int32),
        place,
        share,
        np.zeros(place.shape, np.uint32),
        step.ChoiceRows(
            whole * np.array([[1, 2, 1]], np.int32),
            np.broadcast_to(np.array([[1, 1], [1, 0]], np.int32), (16, 2, 2)),
            share,
            share,
        ),
    )

    def gradients(mesh=None):
        # As in the test above, experts are numbered within their part of the mesh.
        params, beneath = jax.tree.map(jnp.asarray, (made, base))
        laid = rows if mesh else rows._replace(slot=place + 2 * (np.arange(16) >= 8)[:, None])
        sums = step.zero_accumulator(params)
        if mesh is not None:
            by_expert = sharding.param_shardings(mesh, params, experts=True)
            params = jax.device_put(params, by_expert)
            sums = jax.device_put(sums, sharding.param_shardings(mesh, sums, experts=True))
            beneath = jax.device_put(base, sharding.param_shardings(mesh, base))
            laid = jax.device_put(rows, sharding.batch_shardings(mesh, rows))
        loss = LossConfig(mc_loss=1.0, unlikely_loss=1.0)
        return step.accumulate(config, kind, loss)(params, beneath, laid, sums)

    wanted, found = gradients(), gradients(on(**dict(MIXED)))
    assert np.all(np.asarray(wanted.loss) > 0)
    for one, same in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, same, rtol=1e-5, atol=1e-5 * np.abs(same).max())


def test_nothing_travels_between_experts(group):
    gather, advance = group(*MIXED)[0]
    assert groups_of_devices(gather)  # the devices of an expert share its rows, heads and kernels
    for together in groups_of_devices(gather) + groups_of_devices(advance):
        assert len({device // 4 for device in together}) == 1


def groups_of_devices(text):
    """Returns the devices, by their place in the mesh, of every group that takes part in a collective."""
    found = []
    for line in text.splitlines():
        if not re.search(COLLECTIVES, line):
            continue
        if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", line):
            found += [list(map(int, one.split(","))) for one in re.findall(r"\{([\d,]+)\}", listed[1])]
        elif named := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\},", line):
            sizes = {axis: int(size) for axis, size in re.findall(r"('\w+')=(\d+)", named[1])}
            together = named[2].split(",")
            apart = [axis for axis in sizes if axis not in together]
            order = [list(sizes).index(axis) for axis in (*apart, *together)]  # refuses a part of an axis
            ids = np.arange(8).reshape(list(sizes.values())).transpose(order)
            found += ids.reshape(-1, math.prod(sizes[axis] for axis in together)).tolist()
        else:
            counted = r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
            by, order, turned = re.findall(counted, line)[0]
            ids = np.arange(8).reshape(list(map(int, order.split(","))))
            ids = ids.transpose(list(map(int, turned.split(",")))) if turned else ids
            found += ids.reshape(list(map(int, by.split(",")))).tolist()
    return found


def test_groups_of_devices_are_read_in_every_way_that_programs_write_them():
    assert groups_of_devices("a = f32[] all-reduce(b), replica_groups={{0,2},{1,3}}, use") == [[0, 2], [1, 3]]
    assert groups_of_devices("a = f32[] all-reduce(b), replica_groups=[2,4]<=[8]")[1] == [4, 5, 6, 7]
    assert groups_of_devices("a = f32[] all-gather(b), replica_groups=[4,2]<=[2,4]T(1,0)")[1] == [1, 5]
    named = "a = f32[] all-reduce(b), replica_groups=mesh['x'=2,'y'=2,'z'=2] {'x','z'}, use"
    assert groups_of_devices(named) == [[0, 1, 4, 5], [2, 3, 6, 7]]
    permuted = "a = f32[] collective-permute(b), source_target_pairs={{0,1},{1,0}}"
    assert groups_of_devices(permuted) == [[0, 1], [1, 0]]


def test_what_an_optimiser_keeps_lies_as_its_parameters(base):
    there = on(expert=2, fsdp=2, tensor=2)
    full = jax.eval_shape(lambda: step.stack([ex.init_expert("full", jax.random.key(0), base)] * 2))
    state = jax.eval_shape(
        lambda params: step.initial_state(params, optimizers.make_optimizer(OptimizerConfig())), full
    )
    found = sharding.param_shardings(there, state, experts=True)
    moments = [leaf for leaf in jax.tree.leaves(found.moments) if len(leaf.spec) > 1]
    assert moments == jax.tree.leaves(found.params) * 2
    wanted = PartitionSpec("expert", None, "fsdp", "tensor")
    assert found.params["encoder"]["layers"]["mlp"]["wi_0"]["kernel"].spec == wanted


def test_leaves_of_the_base_and_of_experts_lie_by_the_names_of_their_axes(base):
    there = on(data=2, fsdp=2, tensor=2)
    found = {path: to.spec for path, to in paths.flatten(sharding.param_shardings(there, base)).items()}
    assert found["token_embedder/embedding"] == PartitionSpec("tensor", "fsdp")
    assert found["decoder/logits_dense/kernel"] == PartitionSpec("fsdp", "tensor")
    assert found["decoder/layers/mlp/wo/kernel"] == PartitionSpec(None, "tensor", "fsdp")
    assert found["encoder/relpos_bias/rel_embedding"] == PartitionSpec("tensor", None)
    assert found["encoder/layers/pre_mlp_layer_norm/scale"] == PartitionSpec(None, None)
    lora = ex.init_expert("lora", jax.random.key(0), base, {"rank": 2})
    query = sharding.param_shardings(there, lora)["encoder"]["layers"]["attention"]["query"]
    assert query["lora_a"].spec == PartitionSpec(None, "fsdp", None)
    assert query["lora_b"].spec == PartitionSpec(None, None, "tensor")


def test_a_reader_is_told_the_shardings_that_a_tree_has(base):
    there = on(fsdp=4, tensor=2)
    told = sharding.sharding_by_path(there)
    whole = paths.flatten(sharding.param_shardings(there, base))
    assert {path: told(path, leaf.shape) for path, leaf in paths.flatten(base).items()} == whole


def test_an_axis_that_the_mesh_does_not_divide_stays_whole():
    there = on(fsdp=4, tensor=2)
    assert sharding.partition_spec(there, ("embed", "mlp"), (30, 7)) == PartitionSpec(None, None)
    assert sharding.partition_spec(there, ("batch", None), (2, 4)) == PartitionSpec(None, None)


def test_rows_are_split_over_all_axes_but_tensor_and_experts_over_their_own():
    there = on(expert=2, fsdp=2, tensor=2)
    assert sharding.batch_shardings(there, PROMPTS).spec == PartitionSpec(("expert", "fsdp"), None)
    losses, places = sharding.param_shardings(there, (np.zeros(4), np.zeros((4, 6))), experts=True)
    assert losses.spec == PartitionSpec("expert")
    assert places.spec == PartitionSpec("expert", None)


def test_one_size_of_a_mesh_may_be_what_is_left():
    assert dict(meshes.make_mesh(tensor=2).shape) == {"expert": 1, "data": 4, "fsdp": 1, "tensor": 2}
    assert dict(on(fsdp=-1).shape) == {"expert": 1, "data": 1, "fsdp": 8, "tensor": 1}


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (
            {"fsdp": 3},
            "8 devices, got expert=1, data=-1, fsdp=3, tensor=1, which takes a multiple of 3",
        ),
        ({"data": 2, "fsdp": 2}, "data=2, fsdp=2, tensor=1, which takes 4"),
        ({"fsdp": -1}, "at most one of -1"),
        ({"tensor": 0}, "at least 1"),
    ],
)
def test_a_mesh_that_the_devices_do_not_make_is_one_sentence(sizes, said):
    with pytest.raises(UserError, match=re.escape(said)):
        meshes.make_mesh(**sizes)
