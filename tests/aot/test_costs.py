"""What is read from real compilations for v5e, against formulas."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from elm_jax.aot import costs, slices
from elm_jax.aot.program import COMPILER_OPTIONS

pytestmark = pytest.mark.aot
V5E = slices.parse_slice("v5e-4")
SYNCHRONOUS = dict.fromkeys(COMPILER_OPTIONS["tpu"], False)


@pytest.fixture(scope="module")
def mesh():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu, of the extra plan, is absent")
    return jax.make_mesh((4,), ("fsdp",), devices=slices.topology_devices(V5E), axis_types=(AxisType.Auto,))


def shape(mesh, *dims, dtype=jnp.bfloat16, split=()):
    return jax.ShapeDtypeStruct(dims, dtype, sharding=NamedSharding(mesh, PartitionSpec(*split)))


def text_of(function, *arguments, options=None, **jit):
    return jax.jit(function, compiler_options=options, **jit).lower(*arguments).compile().as_text()


def counted(mesh, *arguments, **options):
    return costs.count_costs(text_of(*arguments, **options), V5E.kind, dict(mesh.shape))


def stack(kernels, x):
    return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, kernels)[0].astype(jnp.float32).sum()


def squares(w, x):
    return jnp.square((x @ w).astype(jnp.float32)).sum()


@pytest.mark.parametrize(
    ("function", "dims", "flops"),
    [
        (jnp.matmul, [(1024, 2048), (2048, 512)], 2 * 1024 * 2048 * 512),
        (lambda q, k: jnp.einsum("bhqd,bhkd->bhqk", q, k), [(4, 8, 256, 64)] * 2, 2 * 32 * 256 * 256 * 64),
        (lambda q, k: jnp.einsum("bqhd,bkhd->bhqk", q, k), [(4, 256, 8, 64)] * 2, 2 * 32 * 256 * 256 * 64),
        (jax.grad(squares), [(1024, 2048), (512, 1024)], 2 * 2 * 512 * 1024 * 2048),
        (jax.grad(stack), [(5, 512, 512), (1024, 512)], 3 * 5 * 2 * 1024 * 512**2),
        (stack, [(5, 512, 512), (1024, 512)], 5 * 2 * 1024 * 512**2),
        # Every row with its own expert's adapter, out of a stack of eight.
        (
            lambda x, e, k: jnp.einsum("bsd,bdr->bsr", x, k[e.astype(jnp.int32)]),
            [(16, 256, 512), (16,), (8, 512, 64)],
            2 * 16 * 256 * 512 * 64,
        ),
    ],
    ids=["plain", "batched", "batched-inside", "gradient", "scanned-gradient", "scanned", "packed"],
)
def test_flops_are_those_of_the_formula(mesh, function, dims, flops):
    found = counted(mesh, function, *(shape(mesh, *each) for each in dims))
    assert found.flops == pytest.approx(flops, rel=0.01)
    assert found.unpriced == ()


def test_a_large_product_runs_near_the_peak(mesh):
    found = counted(mesh, jnp.matmul, shape(mesh, 4096, 4096), shape(mesh, 4096, 4096))
    assert found.flops
    assert found.seconds
    assert 0.9 < found.flops / found.seconds / V5E.kind.peak_flops < 1.0


def test_a_loop_that_may_end_early_counts_to_its_limit(mesh):
    def generate(w, x):
        def step(state):
            place, x, done = state
            x = jnp.tanh(x @ w)
            return place + 1, x, done | (x[:, 0] > 0.5)

        state = (jnp.int32(0), x, jnp.zeros(x.shape[0], bool))
        return lax.while_loop(lambda state: (state[0] < 48) & ~state[2].all(), step, state)

    found = counted(mesh, generate, shape(mesh, 512, 512), shape(mesh, 128, 512))
    assert found.flops == pytest.approx(48 * 2 * 128 * 512**2, rel=0.01)


def test_asynchronous_gathers_are_hidden_and_cost_no_seconds(mesh):
    arguments = shape(mesh, 5, 1024, 1024, split=(None, "fsdp")), shape(mesh, 4096, 1024, split=("fsdp",))
    gradient, split = jax.grad(stack), NamedSharding(mesh, PartitionSpec(None, "fsdp"))

    def gathers(options):
        found = counted(mesh, gradient, *arguments, options=options, out_shardings=split)
        return found, [each for each in found.collectives if each.kind == "all-gather"]

    blocking, all_exposed = gathers(SYNCHRONOUS)
    fused, some_hidden = gathers(dict(COMPILER_OPTIONS["tpu"]))
    both = 2 * 5 * 1024 * 1024 * 2  # every kernel, forward and backward
    assert {each.hidden for each in all_exposed} == {False}
    assert any(each.hidden for each in some_hidden)
    assert sum(each.bytes for each in all_exposed) == both
    assert sum(each.bytes for each in some_hidden) == both
    assert fused.collective_seconds < blocking.collective_seconds
    assert fused.flops == pytest.approx(3 * 5 * 2 * 4096 * 1024**2 / 4, rel=0.01)


def test_what_two_slices_exchange_goes_over_the_network_between_them():
    both = slices.parse_slice("2xv5e-4")
    devices = mesh_utils.create_hybrid_device_mesh((1, 4), (2, 1), slices.topology_devices(both))
    mesh = Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    split = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    found = counted(
        mesh,
        jax.grad(stack),
        shape(mesh, 5, 1024, 1024, split=(None, "fsdp")),
        shape(mesh, 2048, 1024, split=(("data", "fsdp"),)),
        out_shardings=split,
    )
    between = [each for each in found.collectives if each.between_slices]
    assert {(each.kind, each.hidden) for each in between} == {("all-reduce", True)}
    assert (
        sum(each.bytes for each in between) == 5 * 1024 * 1024 * 2 / 4
    )  # every device's part of the gradients
    assert found.unpriced == ("5 x all-reduce between slices",)
    assert {each.axes for each in found.collectives if not each.between_slices} == {("fsdp",)}


def test_products_tell_their_types_and_precision(mesh):
    x = shape(mesh, 512, 512, dtype=jnp.float32)
    [(rounded, _)] = costs.list_products(text_of(jnp.matmul, x, x))
    with jax.default_matmul_precision("float32"):
        [(exact, times)] = costs.list_products(text_of(lambda x, y: x @ y, x, x))
    assert (rounded.precision, exact.precision, times) == ("default", "highest", 1)
    assert exact.operands == ("f32", "f32")
