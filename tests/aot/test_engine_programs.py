"""What only a TPU's compiler shows of the engines' programs: types, sums, traffic and meshes.

The network is small, but its stacks have five layers, so that they are scanned.
"""

import itertools
import math
import re
from functools import lru_cache

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from elm_jax.aot import costs, memory, slices
from elm_jax.errors import UserError
from elm_jax.models import meshes, shapes
from elm_jax.models.sizes import find_config
from elm_jax.planning.program_specs import (
    EmbeddingProgramSpec,
    GenerationProgramSpec,
    ScoringProgramSpec,
    SearchProgramSpec,
)
from elm_jax.scoring import buckets
from elm_jax.training.batches import Shape
from elm_jax.training.programs import group_programs, layout_for
from tests.training_configs import make_plan

pytestmark = pytest.mark.aot
LAYERS = 5
NETWORK = {"vocab_size": 512, "emb_dim": 128, "num_heads": 2, "head_dim": 64, "mlp_dim": 256}
NETWORK |= {"num_encoder_layers": LAYERS, "num_decoder_layers": LAYERS, "dropout_rate": 0.1}
LORA = {"rank": 8, "projections": ("query", "wo")}
KINDS = {"bottleneck": {}, "lora": LORA, "ia3": {}, "full": {}}


def network(dtype):
    return find_config("tiny", dtype=dtype, **NETWORK)


@lru_cache
def mesh_of(slice_name, sizes):
    return meshes.make_mesh(
        slices.topology_devices(slices.parse_slice(slice_name)), **({"data": 1} | dict(sizes))
    )


def group(slice_name, kind="bottleneck", dtype="bfloat16", places=4, **sizes):
    mesh = mesh_of(slice_name, tuple(sizes.items()))
    optimizer = "adafactor" if kind == "full" else "adamw"
    plan = make_plan(kind=kind, options=KINDS[kind], optimizer=optimizer)
    layout = layout_for(kind, places, mesh)
    shape = Shape(max(8, layout.row_parts), 128, 32, 1 if kind == "full" else 2)
    return group_programs(network(dtype), plan, layout, shape, mesh=mesh)


@lru_cache
def gathered(slice_name, kind="bottleneck", dtype="bfloat16", **sizes):
    """The compiled text of a batch's gradients, and the mesh's sizes."""
    program = group(slice_name, kind, dtype, **sizes).accumulate
    return program.lower().compile().as_text(), mesh_of(slice_name, tuple(sizes.items())).shape


def collectives(text, mesh, slice_name="v5e-4"):
    return costs.count_costs(text, slices.parse_slice(slice_name).kind, dict(mesh)).collectives


def products(program):
    return [product for product, _ in costs.list_products(program.lower().compile().as_text())]


def scored(way, kind="bottleneck", options=None):
    shape = buckets.BucketShape(64, 16, 16)
    return ScoringProgramSpec("score", network("float32"), way, shape, 8, kind, options or {}, 3)


ONE = ("v5e-1", ())
FLOAT32 = {
    "one full expert": scored("full"),
    "a stack": scored("stack"),
    "a stack of LoRA": scored("stack", "lora", LORA),
    "a gate": scored("gate", "lora", LORA),
    "generation": GenerationProgramSpec("generate", network("float32"), "stack", 8, 64, 8, experts=3),
    "embedding by T5": EmbeddingProgramSpec("embed", network("float32"), 8, 64),
    "embedding by MiniLM": EmbeddingProgramSpec("embed", None, 8, 64),
    "search": SearchProgramSpec("search", 32, 4096, 128),
}


def assert_exact(found):
    """A choice among experts is a product with truth values, which are exact as they are."""
    assert found
    assert {product.precision for product in found} == {"highest"}
    assert {each for product in found for each in product.operands} <= {"f32", "pred"}


def some_nightly(cases, *shorter):
    """Cases of a test, of which all but `shorter` run at night."""
    marks = {True: (), False: (pytest.mark.nightly,)}
    return [pytest.param(*case, marks=marks[case in shorter], id="-".join(map(str, case))) for case in cases]


@pytest.mark.parametrize("name", some_nightly([(name,) for name in FLOAT32], ("a stack",), ("generation",)))
def test_every_product_of_a_float32_network_is_float32(name):
    (program,) = FLOAT32[name].programs(mesh_of(*ONE))
    assert_exact(products(program))


@pytest.mark.parametrize("kind", some_nightly([("bottleneck",), ("lora",), ("full",)], ("bottleneck",)))
def test_every_product_of_a_float32_training_is_float32_its_gradients_too(kind):
    text, _ = gathered("v5e-1", kind, "float32")
    found = [product for product, _ in costs.list_products(text)]
    assert any("transpose" in product.op_name for product in found)
    assert_exact(found)


def test_in_a_group_of_a_bfloat16_network_norm_scales_stay_float32():
    """They are selected: a product, with one-hot vectors for instance, would round them."""
    text, _ = gathered("v5e-1")
    assert "layer_norm" in text
    assert not [product for product, _ in costs.list_products(text) if "layer_norm" in product.op_name]


LAYOUTS = [
    ("full", {"data": 2, "fsdp": 2}),
    ("bottleneck", {"data": 2, "fsdp": 2}),
    *itertools.product(["full", "bottleneck"], [{"data": 4}, {"fsdp": 4}]),
    *itertools.product(["lora", "ia3"], [{"data": 2, "fsdp": 2}]),
]


@pytest.mark.parametrize(("kind", "sizes"), some_nightly(LAYOUTS, *LAYOUTS[:2]))
def test_gradients_are_summed_in_float32_over_devices_and_within_a_product(kind, sizes):
    text, mesh = gathered("v5e-4", kind, **sizes)
    summed = [each for each in collectives(text, mesh) if each.kind in ("all-reduce", "reduce-scatter")]
    assert summed
    assert {each.dtype for each in summed if each.dtype.startswith(("bf", "f"))} == {"f32"}
    # Einsums whose result is a kernel, of all rows, of a row's experts or of all experts.
    of_kernels = [each for each, _ in costs.list_products(text) if re.search(r"->[be]?g?io/", each.op_name)]
    assert {product.result for product in of_kernels} <= {"f32"}
    assert of_kernels or kind == "ia3"


@pytest.mark.parametrize(
    "kind", some_nightly([(kind,) for kind in ("bottleneck", "lora", "ia3", "full")], ("bottleneck",))
)
def test_between_experts_nothing_travels(kind):
    text, mesh = gathered("v5e-4", kind, expert=4)
    assert collectives(text, mesh) == ()


def test_putting_one_expert_sends_nothing_and_taking_one_sends_that_one_alone():
    programs = group("v5e-4", places=8, expert=4)
    mesh = mesh_of("v5e-4", (("expert", 4),)).shape
    for program in (programs.put_slot, programs.resume_slot, programs.update):
        assert collectives(program.lower().compile().as_text(), mesh) == ()
    one = sum(
        4 * leaf.size for leaf in jax.tree.leaves(shapes.expert_shapes(network("bfloat16"), "bottleneck"))
    )
    sent = collectives(programs.take_slot.lower().compile().as_text(), mesh)
    assert sum(each.bytes for each in sent) == one


def test_gathers_of_kernels_run_beside_products():
    """A v4 waits for them unless it is told otherwise."""
    text, mesh = gathered("v4-8", "full", fsdp=4)
    found = [each for each in collectives(text, mesh, "v4-8") if each.kind == "all-gather"]
    kernels = [each for each in found if each.dtype == "bf16"]
    assert sum(each.count for each in kernels) >= 2 * 8 * LAYERS
    assert all(each.hidden for each in kernels)


def test_full_training_has_no_base_beside_its_experts():
    programs = group("v4-8", "full", fsdp=4)
    leaves = jax.tree.leaves(shapes.base_shapes(network("bfloat16")))
    for program in (programs.accumulate, programs.update, programs.evaluate):
        there = jax.tree.leaves((program.arguments, program.resident))
        assert jnp.bfloat16 not in {leaf.dtype for leaf in there}
    whole = 4 * sum(leaf.size for leaf in leaves)
    params = memory.device_bytes(programs.accumulate.arguments[0])
    assert params < whole / 3  # split over four devices, all but what is small


AXES = meshes.AXES


@pytest.mark.parametrize("name", ["v4-8", "v4-64", "v5e-8", "v5e-32", "v5p-128", "v6e-16", "v6e-256"])
def test_every_mesh_that_divides_the_devices_of_a_slice_can_be_made(name):
    devices = slices.topology_devices(slices.parse_slice(name))
    powers = int(math.log2(len(devices)))
    for split in itertools.combinations_with_replacement(range(powers + 1), 3):
        low, middle, high = split
        sizes = dict(
            zip(AXES, (2**low, 2 ** (middle - low), 2 ** (high - middle), 2 ** (powers - high)), strict=True)
        )
        mesh = meshes.make_mesh(devices, **sizes)
        assert dict(mesh.shape) == sizes
        assert {device.id for device in mesh.devices.flat} == {device.id for device in devices}


CRASHED = [
    ("2xv5e-4", {"expert": 2, "data": 2, "tensor": 2}),
    ("v6e-16", {"expert": 8, "fsdp": 2}),
    ("2xv5e-4", {"data": 2, "fsdp": 4}),
    ("2xv5e-4", {"expert": 8}),
]


@pytest.mark.parametrize(("name", "sizes"), some_nightly(CRASHED, CRASHED[0]))
def test_meshes_that_once_crashed_compile(name, sizes):
    kind = "full" if sizes.get("fsdp", 1) > 2 else "bottleneck"
    text, mesh = gathered(name, kind, **sizes)
    assert costs.count_costs(text, slices.parse_slice(name).kind, dict(mesh)).flops


def test_between_slices_no_kernel_is_gathered():
    devices = slices.topology_devices(slices.parse_slice("2xv5e-4"))
    mesh = meshes.make_mesh(devices, data=2, fsdp=4)
    assert all(len({device.slice_index for device in row.flat}) == 1 for row in mesh.devices[0])
    with pytest.raises(UserError, match=r"expert and data axes divide into 2 slices.*data=2"):
        meshes.make_mesh(devices, data=1, fsdp=8)


@pytest.mark.nightly
def test_programs_lower_for_a_gpu():
    """Without its compiler: that a program lowers for CUDA proves no more than that."""
    on = AbstractMesh((1,) * 4, AXES, axis_types=(AxisType.Auto,) * 4)
    for kind, options in KINDS.items():
        plan = make_plan(kind=kind, options=options, optimizer="adafactor" if kind == "full" else "adamw")
        layout = layout_for(kind, 4, on)
        programs = group_programs(network("bfloat16"), plan, layout, Shape(8, 128, 32, 2), platform="gpu")
        for program in (programs.init, programs.accumulate, programs.update, programs.put_slot):
            exported = jax.export.export(program.function, platforms=["cuda"])(*program.arguments)
            assert exported.platforms == ("cuda",)
