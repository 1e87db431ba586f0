"""The attention kernel, interpreted, gives what the plain form gives: results, gradients, dropout."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.interpreters.partial_eval import dce_jaxpr

from elm_jax.aot.program import trace_for
from elm_jax.models import attention_check, attention_tiles, expert_layers, meshes, sharding
from elm_jax.models import attention_kernel as kernel
from elm_jax.models.dropout import is_kept
from elm_jax.models.masks import NEVER_ATTENDED
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import T5, init_params

RNG = np.random.default_rng(7)


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    monkeypatch.setattr(pl, "pallas_call", partial(pl.pallas_call, interpret=True))
    monkeypatch.setattr(kernel, "_MIN_ATTENTION_WEIGHTS", 0)


def plain(head_dim, causal, rate, given):
    """Attention as its formula has it, in float32."""
    rows, queries, width = given.query.shape
    heads = width // head_dim
    q, k, v = (
        x.astype(jnp.float32).reshape(rows, -1, heads, head_dim)
        for x in (given.query, given.key, given.value)
    )
    logits = jnp.einsum("nqhd,nkhd->nhqk", q, k)
    if given.bias is not None:
        logits += given.bias.swapaxes(1, 2)[None]
    weights = jax.nn.softmax(jnp.where(seen_by(given, causal)[:, None], logits, -1e10), axis=-1)
    if rate:
        words = given.query_dropout_seeds[..., None] + given.key_dropout_seeds[:, None, None]
        weights = jnp.where(is_kept(words, rate), weights / (1 - rate), 0)
    return jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(rows, queries, width)


def seen_by(given, causal):
    seen = given.query_segments[:, :, None] == given.key_segments[:, None]
    return seen & np.tril(np.ones(seen.shape[1:], bool)) if causal else seen


def drawn(rows, queries, keys, heads, head_dim, rate, *, biased=True, dtype=jnp.float32):
    def words(*shape):
        return RNG.integers(0, 2**32, shape, np.uint32) if rate else None

    def states(length):
        return jnp.asarray(0.5 * RNG.normal(size=(rows, length, heads * head_dim)), dtype)

    segments = [np.sort(RNG.integers(1, 3, (rows, length)), axis=1) for length in (queries, keys)]
    segments[1][:, -2:] = NEVER_ATTENDED
    segments[0][0, -3:] = 9  # sees nothing
    return kernel.Arguments(
        states(queries),
        states(keys),
        states(keys),
        *(each.astype(np.int32) for each in segments),
        jnp.asarray(RNG.normal(size=(heads, keys, queries)), jnp.float32) if biased else None,
        words(rows, heads, queries),
        words(rows, keys),
    )


def close(one, other, tolerance):
    """Asserts that arrays differ by no more than a share of an element, of the largest one, or of 1."""
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        left, right = (np.asarray(each, np.float32) for each in (left, right))
        # One that is near zero is what is left of larger terms, and keeps their rounding.
        largest = max(1.0, float(np.abs(right).max()))
        np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance * largest)


def test_the_check_on_a_device_finds_what_is_wrong_and_passes_what_is_right(monkeypatch):
    assert attention_check.largest_difference() < 1e-5
    monkeypatch.setattr(kernel, "attend", lambda *given: attention_check.attend_plainly(*given) * 1.01)
    assert attention_check.largest_difference() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("word", ["off", "0"])
def test_the_kernel_can_be_switched_off(monkeypatch, word):
    with trace_for("tpu"):
        assert kernel.should_use_kernel(128, 128, 2, 64)
        monkeypatch.setenv(kernel.KERNEL_ENV_VARIABLE, word)
        assert not kernel.should_use_kernel(128, 128, 2, 64)


SIZES = {
    "two heads of 64": (2, 128, 128, 2, 64),
    "cross-attention, short": (3, 8, 24, 2, 64),
    "wide heads": (2, 16, 40, 3, 128),
    "four narrow heads": (2, 16, 16, 8, 32),
    "several tiles and pairs": (2, 256, 136, 4, 64),
}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(("rate", "causal", "biased"), [(0.2, False, True), (0.0, True, False)])
def test_results_and_gradients_are_those_of_the_formula(size, rate, causal, biased):
    given = drawn(*size, rate, biased=biased)
    sees = seen_by(given, causal).any(axis=2, keepdims=True)  # the others pass no gradient on
    aim = RNG.normal(size=given.query.shape).astype(np.float32) * sees

    def result(attend, states):
        own = given._replace(**dict(zip(("query", "key", "value", "bias"), states, strict=True)))
        found = attend(size[-1], causal, rate, own)
        return (found * aim).sum(), found

    states = (given.query, given.key, given.value, given.bias)
    found, expected = (
        jax.value_and_grad(partial(result, attend), has_aux=True)(states) for attend in (kernel.attend, plain)
    )
    close(found, expected, 3e-5)


def test_blocks_of_queries_add_up_the_gradients_of_keys(monkeypatch):
    monkeypatch.setattr(attention_tiles, "BIAS_BYTES", 4 * 2 * 128 * 128)
    given = drawn(2, 384, 128, 2, 64, 0.1)
    shape = kernel.Shape(2, 384, 128, 2, 64, False, 0.1, True)
    assert shape.grid == (1, 3, 2)

    sees = seen_by(given, True).any(axis=2, keepdims=True)

    def loss(attend, key, value, bias):
        own = given._replace(key=key, value=value, bias=bias)
        return (jnp.sin(attend(64, True, 0.1, own)) * sees).sum()

    states = (given.key, given.value, given.bias)
    close(*(jax.grad(partial(loss, each), (0, 1, 2))(*states) for each in (kernel.attend, plain)), 1e-4)


def test_bfloat16_results_are_near_those_of_float32():
    given = drawn(2, 128, 128, 2, 64, 0.1, dtype=jnp.bfloat16)
    found = kernel.attend(64, False, 0.1, given)
    assert found.dtype == jnp.bfloat16
    close(found[:, :-3], plain(64, False, 0.1, given)[:, :-3], 0.03)


CONFIG = find_config(
    "tiny", vocab_size=48, emb_dim=32, num_heads=4, head_dim=64, mlp_dim=40, dropout_rate=0.1,
    num_encoder_layers=5, num_decoder_layers=5,
)  # fmt: skip
PROMPTS = RNG.integers(3, 48, (8, 16)).astype(np.int32)
ANSWERS = RNG.integers(3, 48, (8, 1, 8)).astype(np.int32)
SEGMENTS = np.repeat(np.array([[1] * 7 + [2] * 7 + [0] * 2], np.int32), 8, axis=0)
ANSWER_SEGMENTS = np.repeat(np.array([[[1, 1, 1, 1, 2, 2, 2, 0]]], np.int32), 8, axis=0)
SEEDS = np.arange(16, dtype=np.uint32).reshape(8, 2)
OF_SEGMENT = np.array([[0, 2], [1, 1], [2, 0], [0, 1]] * 2, np.int32)


@pytest.fixture(scope="module")
def params():
    return init_params(jax.random.key(0), CONFIG)


def gradients(config, params, experts, *, platform, mesh=None):
    """The loss of packed rows with dropout, and its gradients, as a platform's programs compute them."""
    full = experts is None

    def loss(trained, frozen):
        network, own, index = (trained, None, None) if full else (frozen, trained, OF_SEGMENT)
        logits = T5(config, train=True).apply(
            {"params": network}, PROMPTS * (SEGMENTS > 0), ANSWERS, own, index, SEGMENTS, ANSWER_SEGMENTS,
            SEEDS, rngs={"dropout": jax.random.key(5)},
        )  # fmt: skip
        return (jax.nn.log_softmax(logits)[..., 7] * (ANSWER_SEGMENTS > 0)).sum()

    trained, frozen = (params, {}) if full else (experts, params)
    if mesh is not None:
        trained = jax.device_put(trained, sharding.param_shardings(mesh, trained, experts=not full))
        frozen = jax.device_put(frozen, sharding.param_shardings(mesh, frozen))
    with trace_for(platform):
        run = jax.jit(lambda *given: jax.value_and_grad(loss)(*given))
        traced = run.trace(trained, frozen).jaxpr
        text = str(traced)
        assert mesh is None or text.count("shard_map") >= text.count("name=attention_")
        return run(trained, frozen), count_kernels(traced)


def count_kernels(traced):
    """The kernels whose results are read. JAX keeps the others, and XLA leaves them out."""
    jaxpr = getattr(traced, "jaxpr", traced)
    jaxpr, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    read = {id(each) for eqn in jaxpr.eqns for each in eqn.invars} | set(map(id, jaxpr.outvars))
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "pallas_call":
            total += any(id(each) in read for each in eqn.outvars)
        else:
            inner = jax.tree.leaves(list(eqn.params.values()))
            total += sum(count_kernels(each) for each in inner if hasattr(each, "eqns"))
    return total


def stack_of(kind, params):
    made = [expert_layers.init_expert(kind, jax.random.key(seed), params) for seed in (1, 2, 3)]
    return jax.tree.map(lambda *leaves: 3 * jnp.stack(leaves), *made)


@pytest.mark.parametrize(
    ("kind", "per_layer"),
    [
        ("bottleneck", False),
        ("full", True),
        pytest.param("lora", True, marks=pytest.mark.nightly),
        pytest.param("ia3", False, marks=pytest.mark.nightly),
    ],
)
def test_a_network_has_the_same_gradients_with_the_kernel(params, kind, per_layer):
    config = replace(CONFIG, relpos_per_layer=per_layer)
    own = init_params(jax.random.key(0), config) if per_layer else params
    experts = None if kind == "full" else stack_of(kind, own)
    expected, none = gradients(config, own, experts, platform="cpu")
    found, kernels = gradients(config, own, experts, platform="tpu")
    # Of encoder, answers and prompts, forward and backward; the backward pass runs no forward one again.
    assert (none, kernels) == (0, 6)
    close(found, expected, 5e-4)  # that of "bottleneck" moves by 1.5e-3 if the base does by two ulps


@pytest.mark.parametrize(
    "sizes", [pytest.param({"data": 8}, marks=pytest.mark.nightly), {"fsdp": 4, "tensor": 2}], ids=str
)
def test_every_layout_on_a_mesh_gives_what_one_device_gives(params, sizes):
    mesh = meshes.make_mesh(**({"data": 1} | sizes))
    expected, _ = gradients(CONFIG, params, None, platform="cpu")
    found, kernels = gradients(CONFIG, params, None, platform="tpu", mesh=mesh)
    assert kernels == 6
    close(found, expected, 2e-4)
