"""Experts: what they leave alone, what they do, and that each row gets its own, however that is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elm_jax.aot.program import trace_for
from elm_jax.errors import UserError
from elm_jax.models import all_experts, paths
from elm_jax.models import expert_layers as ex
from elm_jax.models.t5 import T5
from elm_jax.training.step import stack

RNG = np.random.default_rng(1)
PROMPTS = RNG.integers(3, 96, (6, 7)).astype(np.int32)
ANSWERS = RNG.integers(3, 96, (6, 2, 4)).astype(np.int32)
INDEX = np.array([2, 0, 1, 1, 0, 2], np.int32)
EVERY = ["query", "key", "value", "out", "wi_0", "wi_1", "wo"]
OPTIONS = {
    "bottleneck": {"width": 4},
    "lora": {"rank": 3, "projections": EVERY},
    "dora": {"rank": 3, "projections": EVERY},
    "vera": {"rank": 5, "projections": EVERY},
    "ia3": {"projections": EVERY},
    "prompt": {"tokens": 3},
}


@pytest.fixture(scope="module")
def network(config, base):
    """Logits of the rows above under an expert, or a stack and an index, beside the base or others."""
    compiled = jax.jit(
        lambda params, *experts: T5(config).apply({"params": params}, PROMPTS, ANSWERS, *experts)
    )

    def run(*experts, params=base):
        return np.asarray(compiled(params, *experts))

    run.programs = compiled._cache_size
    return run


@pytest.fixture(scope="module")
def trained(base):
    """Three experts of every kind that stand beside a base, each far from where it started."""

    def far(fresh):
        return jax.tree.map(
            lambda leaf: np.asarray(leaf) + RNG.normal(0, 0.2, leaf.shape).astype(np.float32), fresh
        )

    made = {kind: ex.init_expert(kind, jax.random.key(0), base, OPTIONS[kind]) for kind in OPTIONS}
    return {kind: [far(fresh) for _ in range(3)] for kind, fresh in made.items()}


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_neutral_expert_leaves_every_logit_as_it_was(network, trained, base, kind):
    expert = trained[kind][0]
    np.testing.assert_allclose(network(ex.make_neutral_expert(expert, base)), network(), atol=1e-5)
    assert np.abs(network(expert) - network()).max() > 0.1


@pytest.mark.parametrize("kind", OPTIONS)
def test_what_is_neutral_holds_numbers_though_its_like_does_not(trained, base, kind):
    broken = jax.tree.map(lambda leaf: leaf * np.nan, trained[kind][0])
    neutral = ex.make_neutral_expert(broken, base)
    shared = {path for path in paths.flatten(neutral) if path.startswith("vera/")}  # frozen, and kept
    assert all(np.isfinite(leaf).all() for path, leaf in paths.flatten(neutral).items() if path not in shared)


@pytest.mark.parametrize("kind", ["lora", "dora", "vera", "ia3"])
def test_a_fresh_expert_changes_no_logit(network, base, kind):
    fresh = ex.init_expert(kind, jax.random.key(0), base, OPTIONS[kind])
    np.testing.assert_allclose(network(fresh), network(), atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
def test_every_parameter_of_an_expert_changes_logits(network, trained, base, kind):
    flat = paths.flatten(trained[kind][0])
    neutral = paths.flatten(ex.make_neutral_expert(trained[kind][0], base))
    whole = network(trained[kind][0])
    for path in flat:
        without = network(paths.unflatten({**flat, path: neutral[path]}))
        assert np.abs(without - whole).max() > 1e-4, path


def test_vera_scales_between_and_behind_as_much_of_the_matrices_as_a_projection_has():
    a, b, d = RNG.normal(size=(5, 3)), RNG.normal(size=(3, 7)), RNG.normal(size=3)
    x, last = RNG.normal(size=(2, 6, 4)), RNG.normal(size=2)
    expert = {"vera_a": a, "vera_b": b, "lambda_d": d, "lambda_b": last}
    expert = {name: jnp.asarray(value, jnp.float32) for name, value in expert.items()}
    found = ex.apply_delta(jnp.asarray(x, jnp.float32), jnp.ones((2, 6, 2)), expert)
    np.testing.assert_allclose(found, 1 + x @ a[:4] * d @ b[:, :2] * last, atol=1e-4)


def test_an_adapter_is_x_plus_up_of_gelu_of_down():
    x = RNG.normal(size=(2, 3, 4)).astype(np.float32)
    down, up = RNG.normal(size=(4, 2)), RNG.normal(size=(2, 4))
    adapter = {
        "down": {"kernel": jnp.asarray(down, jnp.float32), "bias": jnp.array([0.5, -1.0])},
        "up": {"kernel": jnp.asarray(up, jnp.float32), "bias": jnp.arange(4.0)},
    }
    hidden = x @ down + np.array([0.5, -1.0])
    gelu = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    np.testing.assert_allclose(
        ex.apply_bottleneck(jnp.asarray(x), adapter), x + gelu @ up + np.arange(4.0), atol=1e-5
    )


def test_lora_adds_the_product_of_its_factors_to_what_a_projection_gives():
    expert = {"lora_a": jnp.array([[1.0], [2.0]]), "lora_b": jnp.array([[10.0, 0.0, -1.0]])}
    x, y = jnp.array([[[1.0, 1.0]], [[0.0, 3.0]]]), jnp.ones((2, 1, 3))
    np.testing.assert_allclose(ex.apply_delta(x, y, expert), [[[31.0, 1.0, -2.0]], [[61.0, 1.0, -5.0]]])
    assert ex.scale_inputs(x, expert) is x


def test_ia3_scales_what_a_projection_takes_or_gives():
    x, y = jnp.array([[[1.0, 2.0]]]), jnp.array([[[3.0, 5.0]]])
    np.testing.assert_allclose(ex.scale_inputs(x, {"ia3_in": jnp.array([2.0, -1.0])}), [[[2.0, -2.0]]])
    np.testing.assert_allclose(ex.apply_delta(x, y, {"ia3_out": jnp.array([0.0, 10.0])}), [[[0.0, 50.0]]])


def test_an_expert_owns_its_norm_scales(network, base):
    owned = ex.make_neutral_expert(ex.init_expert("bottleneck", jax.random.key(0), base, {"width": 4}), base)
    owned["encoder"]["encoder_norm"]["scale"] = owned["encoder"]["encoder_norm"]["scale"] * 2
    changed = {**base, "encoder": {**base["encoder"], "encoder_norm": owned["encoder"]["encoder_norm"]}}
    np.testing.assert_allclose(network(owned), network(params=changed), atol=1e-5)


@pytest.mark.parametrize("how", ["gathered", "grouped"])
@pytest.mark.parametrize("kind", OPTIONS)
def test_rows_of_different_experts_in_one_batch_score_as_each_alone(network, trained, kind, how):
    together = stack(trained[kind])
    mixed = network(ex.mark_for_ragged_dot(together) if how == "grouped" else together, INDEX)
    for expert, tree in enumerate(trained[kind]):
        rows = expert == INDEX
        np.testing.assert_allclose(mixed[rows], network(tree)[rows], atol=1e-5)


@pytest.mark.parametrize("index", [[0, 1, 2, 3], [3, 3, 3, 3], [2, 0, 2, 0], [1, 3, 0, 3]])
def test_rows_may_come_in_any_order_and_experts_have_no_rows(index):
    kernels = RNG.normal(size=(5, 2, 3, 4)).astype(np.float32)
    x = RNG.normal(size=(4, 2, 6, 3)).astype(np.float32)
    wanted = np.stack([x[row] @ kernels[expert, 1] for row, expert in enumerate(index)])
    for tree in ({"k": kernels}, ex.mark_for_ragged_dot({"k": kernels})):
        cut, rows = ex.split_by_layer(tree, np.array(index, np.int32))
        found = ex.multiply(jnp.asarray(x), ex.gather_row_experts(cut[1], rows)["k"])
        np.testing.assert_allclose(found, wanted, atol=1e-5)


# Tokens of three rows, their segments, the expert of each segment, and so of each token; padding is in none.
SEGMENTS = np.array([[1, 1, 2, 2, 3, 3], [1, 1, 1, 1, 1, 0], [1, 2, 2, 0, 0, 0]], np.int32)
OF_SEGMENT = np.array([[2, 0, 2], [3, 1, 1], [0, 3, 0]], np.int32)
OF_TOKEN = np.take_along_axis(OF_SEGMENT, np.maximum(SEGMENTS - 1, 0), axis=1)
REAL = SEGMENTS > 0


@pytest.fixture(params=["cpu", "tpu"])
def form(request):
    """Traces for a platform; a TPU multiplies by the kernels of all experts, and selects vectors."""
    with trace_for(request.param):
        yield {"cpu": ex.PerSegmentParams, "tpu": all_experts.PerExpertParams}[request.param]


def slotted(stack, form, dtype="float32"):
    """Gives every segment its expert, out of layer 1 of a stack."""
    cut, rows = ex.split_by_layer(stack, ex.pair_with_segments(OF_SEGMENT, SEGMENTS), dtype=dtype)
    found = ex.gather_row_experts(jax.tree.map(lambda leaf: leaf[1], cut), rows)
    assert all(isinstance(leaf, form) for leaf in found.values())
    return found


@pytest.mark.parametrize(("inputs", "outputs"), [(5, 2), (2, 5), (4, 4)], ids=["down", "up", "square"])
def test_every_token_of_a_packed_row_meets_the_kernel_of_its_own_segment(inputs, outputs, form):
    kernels = RNG.normal(size=(4, 2, inputs, outputs)).astype(np.float32)
    x = RNG.normal(size=(3, 6, inputs)).astype(np.float32)
    found = np.asarray(ex.multiply(jnp.asarray(x), slotted({"k": kernels}, form)["k"]))
    wanted = np.einsum("bni,bnio->bno", x, kernels[OF_TOKEN, 1])
    np.testing.assert_allclose(found[REAL], wanted[REAL], atol=1e-5)
    between = ex.multiply(
        jnp.asarray(x)[:, None], slotted({"k": kernels}, form)["k"]
    )  # an answer to each prompt
    np.testing.assert_allclose(np.asarray(between)[:, 0], found, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("inputs", "outputs"), [(5, 2), (2, 5)], ids=["down", "up"])
def test_gradients_of_a_packed_row_reach_the_experts_of_its_segments_by_their_own_tokens(
    inputs, outputs, form, dtype
):
    kernels = RNG.normal(size=(4, 2, inputs, outputs)).astype(np.float32)
    x = RNG.normal(size=(3, 6, inputs)).astype(np.float32)
    pull = np.where(REAL[..., None], RNG.normal(size=(3, 6, outputs)), 0).astype(np.float32)
    x, pull = (np.asarray(jnp.asarray(each, dtype), np.float32) for each in (x, pull))  # what dtype can hold

    def total(stack):
        return (ex.multiply(jnp.asarray(x, dtype), slotted(stack, form, dtype)["k"]) * pull).sum()

    found = np.asarray(jax.jit(jax.grad(total))({"k": jnp.asarray(kernels)})["k"])
    assert not found[:, 0].any()
    for expert in range(4):
        own = REAL & (expert == OF_TOKEN)
        np.testing.assert_allclose(found[expert, 1], x[own].T @ pull[own], atol=1e-4)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize(("inputs", "outputs"), [(5, 2), (2, 5)], ids=["down", "up"])
@pytest.mark.parametrize("of_gradient", [False, True], ids=["activations", "gradients"])
def test_what_is_not_finite_reaches_no_expert_of_another_row(inputs, outputs, form, broken, of_gradient):
    """Row 1 has experts 3 and 1; row 0 has 2 and 0, and row 2 has 0 and 3."""
    kernels = jnp.asarray(RNG.normal(size=(4, 2, inputs, outputs)), jnp.float32)
    x = RNG.normal(size=(3, 6, inputs)).astype(np.float32)
    pull = np.where(REAL[..., None], RNG.normal(size=(3, 6, outputs)), 0).astype(np.float32)

    @jax.jit
    def gradients(x, pull):
        return jax.grad(lambda stack: (ex.multiply(x, slotted(stack, form)["k"]) * pull).sum())(
            {"k": kernels}
        )

    wanted = np.asarray(gradients(x, pull)["k"])
    (pull if of_gradient else x)[1, 0] = broken
    found = np.asarray(gradients(x, pull)["k"])
    np.testing.assert_allclose(found[[0, 2]], wanted[[0, 2]], rtol=1e-6)
    assert not of_gradient or not np.isfinite(found[3, 1]).all()


@pytest.mark.parametrize("between", [(), (1,)], ids=["prompts", "answers"])
def test_a_vector_of_a_segment_is_spread_over_its_own_tokens(between, form):
    vectors = RNG.normal(size=(4, 2, 5)).astype(np.float32)
    like = jnp.zeros((3, *between, 6, 5))
    found = np.asarray(ex.broadcast_to_tokens(slotted({"v": vectors}, form)["v"], like)).reshape(3, 6, 5)
    np.testing.assert_allclose(found[REAL], vectors[OF_TOKEN, 1][REAL], rtol=1e-6)


# Soft prompts are no part of a layer, and VeRA's matrices are shared by all of them; `test_packing` has both.
@pytest.mark.parametrize("kind", [kind for kind in OPTIONS if kind not in ("prompt", "vera")])
def test_tokens_of_packed_rows_pass_a_projection_and_an_adapter_as_under_their_own_expert(
    trained, kind, form
):
    """What a kind has for an attention's key, or its adapter, by token and gathered by hand."""
    stacked = stack([*trained[kind], trained[kind][0]])["encoder"]["layers"]
    x = RNG.normal(size=(3, 6, 32)).astype(np.float32)
    y = RNG.normal(size=(3, 6, width_of_key(kind, stacked))).astype(np.float32)

    def passed(own, x, y):
        if kind == "bottleneck":
            return ex.apply_bottleneck(x, own["attention_adapter"])
        return ex.apply_delta(x, y, own["attention"]["key"])

    cut, rows = ex.split_by_layer(stacked, ex.pair_with_segments(OF_SEGMENT, SEGMENTS))
    gathered = ex.gather_row_experts(jax.tree.map(lambda leaf: leaf[1], cut), rows)
    assert isinstance(jax.tree.leaves(gathered, is_leaf=lambda leaf: isinstance(leaf, form))[0], form)
    found = np.asarray(passed(gathered, jnp.asarray(x), jnp.asarray(y)))
    for row, token in np.argwhere(REAL):
        own = jax.tree.map(lambda leaf, at=OF_TOKEN[row, token]: leaf[at, 1], stacked)
        wanted = passed(own, jnp.asarray(x[row, token][None, None]), jnp.asarray(y[row, token][None, None]))
        np.testing.assert_allclose(found[row, token], wanted[0, 0], atol=1e-5)


def width_of_key(kind, stacked):
    """The outputs of an attention's key."""
    names = {"lora": "lora_b", "ia3": "ia3_out"}
    return stacked["attention"]["key"][names[kind]].shape[-1] if kind in names else 32


def test_segments_of_experts_want_rows_with_segment_ids():
    with pytest.raises(UserError, match="segment ids"):
        ex.pair_with_segments(OF_SEGMENT, None)


def test_a_scan_over_layers_reads_a_stack_without_copying_it():
    stacked = {"kernel": jnp.asarray(RNG.normal(size=(32, 6, 8, 8)), jnp.float32)}
    x, index = jnp.asarray(RNG.normal(size=(2, 3, 8)), jnp.float32), np.array([30, 4], np.int32)

    @jax.jit
    def layers(stacked, x):
        cut, rows = ex.split_by_layer(stacked, index)
        return jax.lax.scan(
            lambda x, at: (ex.multiply(x, ex.gather_row_experts(at, rows)["kernel"]), None), x, cut
        )[0]

    wanted = [np.linalg.multi_dot([row, *stacked["kernel"][at]]) for row, at in zip(x, index, strict=True)]
    np.testing.assert_allclose(layers(stacked, x), wanted, rtol=1e-4)
    memory = layers.lower(stacked, x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < stacked["kernel"].nbytes / 4


def test_an_expert_that_does_not_exist_gives_no_number():
    found = ex.gather_row_experts({"scale": np.ones((3, 2), np.float32)}, np.array([0, 3], np.int32))["scale"]
    assert np.isnan(found).any(axis=1).tolist() == [False, True]


@pytest.mark.parametrize("mark", [lambda tree: tree, ex.mark_for_ragged_dot])
def test_gradients_of_a_row_reach_its_own_expert_alone(mark):
    stacked = {"a": RNG.normal(size=(3, 1, 4, 2)), "b": RNG.normal(size=(3, 1, 2, 4))}
    stacked = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), stacked)
    x, index = jnp.asarray(RNG.normal(size=(4, 5, 4)), jnp.float32), np.array([2, 0, 2, 2], np.int32)

    def total(tree):
        cut, rows = ex.split_by_layer(mark(tree), index)
        own = ex.gather_row_experts(cut[0], rows)
        return (ex.multiply(ex.multiply(x, own["a"]), own["b"]) ** 2).sum()

    found = jax.jit(jax.grad(total))(stacked)
    for expert in range(3):
        rows = x[index == expert]
        alone = jax.grad(lambda tree, rows=rows: ((rows @ tree["a"] @ tree["b"]) ** 2).sum())(
            jax.tree.map(lambda leaf, expert=expert: leaf[expert, 0], stacked)
        )
        for name in stacked:
            np.testing.assert_allclose(found[name][expert, 0], alone[name], atol=1e-3)


def test_swapping_experts_compiles_nothing(network, trained, base):
    network(trained["lora"][0])
    programs = network.programs()
    network(trained["lora"][1])
    network(ex.make_neutral_expert(trained["lora"][2], base))
    assert network.programs() == programs


def test_a_full_expert_is_the_base_and_stands_in_its_place(base):
    full = ex.init_expert("full", jax.random.key(0), base)
    params, beside = ex.split_base_and_expert("full", base, full)
    assert beside is None
    assert jax.tree.all(jax.tree.map(np.array_equal, params, base))
