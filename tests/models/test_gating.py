"""Gating: every token weighs the experts for itself, at every projection, also inside the network."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.models import expert_layers as ex
from elm_jax.models import gating, paths
from elm_jax.models.gating import TokenGate
from elm_jax.models.t5 import T5
from elm_jax.training.step import stack

RNG = np.random.default_rng(3)
PROMPTS = RNG.integers(3, 96, (3, 6)).astype(np.int32)
ANSWERS = RNG.integers(3, 96, (3, 2, 4)).astype(np.int32)


@pytest.fixture(scope="module")
def network(config, base):
    compiled = jax.jit(
        lambda *experts: T5(config).apply({"params": base}, PROMPTS, ANSWERS, *experts),
    )

    def run(*experts):
        return np.asarray(compiled(*experts))

    run.programs = compiled._cache_size
    return run


@pytest.fixture(scope="module")
def trained(base):
    """Three LoRA experts that change every logit."""
    fresh = ex.init_expert(
        "lora", jax.random.key(0), base, {"rank": 2, "projections": ["query", "value", "wo"]}
    )
    return [
        jax.tree.map(lambda leaf: np.asarray(leaf) + RNG.normal(0, 0.2, leaf.shape).astype(np.float32), fresh)
        for _ in range(3)
    ]


def prototypes(stacked, directions=2):
    """Random prototypes for every projection of a stack."""
    shapes = {path: leaf.shape for path, leaf in paths.flatten(stacked).items() if path.endswith("lora_a")}
    return {
        path.removesuffix("/lora_a"): RNG.normal(size=(*shape[:3], directions)).astype(np.float32)
        for path, shape in shapes.items()
    }


def only(expert):
    return np.arange(3) == expert


def test_a_gate_that_gives_one_expert_everything_is_that_expert_alone(network, trained):
    stacked = stack(trained)
    protos = prototypes(stacked)
    before = None
    for number, expert in enumerate(trained):
        tree = gating.make_gated_tree(stacked, protos, k=2, allowed=only(number))
        np.testing.assert_allclose(network(tree), network(expert), atol=1e-5)
        assert before is None or network.programs() == before
        before = network.programs()


def test_the_gate_may_also_choose_that_expert_itself(network, trained):
    stacked = stack(trained)
    strong = {
        path: p * np.array([1e-6, 1.0, 1e-6])[:, None, None, None] for path, p in prototypes(stacked).items()
    }
    tree = gating.make_gated_tree(stacked, {path: p.astype(np.float32) for path, p in strong.items()}, k=1)
    np.testing.assert_allclose(network(tree), network(trained[1]), atol=1e-5)


def test_the_order_of_experts_changes_nothing(network, trained):
    protos = prototypes(stack(trained))
    order = [2, 0, 1]
    there = gating.make_gated_tree(stack(trained), protos, k=2)
    turned = {path: prototype[order] for path, prototype in protos.items()}
    back = gating.make_gated_tree(stack([trained[expert] for expert in order]), turned, k=2)
    np.testing.assert_allclose(network(there), network(back), atol=1e-5)
    assert np.abs(network(there) - network(trained[0])).max() > 0.1


def test_experts_that_are_all_alike_are_that_one_whatever_the_weights(network, trained):
    stacked = stack([trained[0]] * 3)
    tree = gating.make_gated_tree(stacked, prototypes(stacked), k=3)
    np.testing.assert_allclose(network(tree), network(trained[0]), atol=1e-5)


def test_a_token_is_answered_by_a_weighted_sum_over_its_own_two_nearest():
    # |x p_e| for x = (3, 4): 3, 4 and 0, so that e^-1 / (1 + e^-1) of the first and the rest of the second.
    gate = TokenGate(
        jnp.array([[[1.0], [0.0]], [[0.0], [-1.0]], [[0.0], [0.0]]]), jnp.ones(3, bool), 2, "norm"
    )
    expert = {
        "gate": gate,
        "lora_a": jnp.array([[[1.0], [0.0]], [[0.0], [1.0]], [[5.0], [5.0]]]),
        "lora_b": jnp.array([[[1.0, 0.0]], [[0.0, 10.0]], [[100.0, 100.0]]]),
    }
    first = np.exp(-1) / (1 + np.exp(-1))
    x = jnp.array([[[3.0, 4.0]]])
    np.testing.assert_allclose(gating.gate_weights(x, gate)[0, 0], [first, 1 - first, 0.0], atol=1e-6)
    given = ex.apply_delta(x, jnp.array([[[1.0, 1.0]]]), expert)
    np.testing.assert_allclose(given[0, 0], [1 + first * 3, 1 + (1 - first) * 40], rtol=1e-6)


def test_a_standardised_token_has_no_length_and_no_mean_but_keeps_its_sign():
    gate = TokenGate(jnp.array([[[1.0], [-1.0]], [[0.0], [0.0]]]), jnp.ones(2, bool), 2, "standard_dot")
    # n((5 + length, 5 - length)) is (1, -1), whose products are 2 and 0.
    share = 1 / (1 + np.exp(-2))
    for length in (1.0, 100.0):
        found = gating.gate_weights(jnp.array([[5 + length, 5 - length], [-length, length]]), gate)
        np.testing.assert_allclose(found, [[share, 1 - share], [1 - share, share]], rtol=1e-4)


def test_uniform_weights_are_one_over_k_whatever_the_scores():
    gate = TokenGate(jnp.array([[[1.0]], [[5.0]], [[3.0]]]), jnp.ones(3, bool), 2, "norm", "uniform")
    np.testing.assert_allclose(gating.gate_weights(jnp.array([[2.0]]), gate), [[0.0, 0.5, 0.5]], rtol=1e-6)


def test_mixed_factors_multiply_the_mean_of_one_side_with_the_mean_of_the_other():
    gate = TokenGate(jnp.ones((2, 1, 1)), jnp.ones(2, bool), 2, "norm", "uniform", "factors")
    expert = {
        "gate": gate,
        "lora_a": jnp.array([[[2.0]], [[4.0]]]),
        "lora_b": jnp.array([[[10.0]], [[-30.0]]]),
    }
    # x = 1: (2 + 4) / 2 times (10 - 30) / 2.
    np.testing.assert_allclose(gating.gated_delta(jnp.array([[1.0]]), expert), [[-30.0]], rtol=1e-6)


def test_equally_similar_experts_share_however_few_may():
    gate = TokenGate(jnp.ones((4, 2, 1)), jnp.array([True, False, True, True]), 1, "norm")
    np.testing.assert_allclose(
        gating.gate_weights(jnp.zeros((1, 2)), gate), [[1 / 3, 0, 1 / 3, 1 / 3]], rtol=1e-6
    )


def draw_many(experts=800, tokens=200, inputs=10, outputs=7, rank=3):
    """A projection with many experts, and tokens that enter it."""
    rng = np.random.default_rng(4)
    factors = {
        "lora_a": rng.normal(size=(experts, inputs, rank)).astype(np.float32),
        "lora_b": rng.normal(size=(experts, rank, outputs)).astype(np.float32),
    }
    prototypes = rng.normal(size=(experts, inputs, 1)).astype(np.float32)
    return factors, prototypes, rng.normal(size=(2, tokens // 2, inputs)).astype(np.float32)


@pytest.mark.parametrize("mixing", ["outputs", "factors"])
@pytest.mark.parametrize("weighting", ["softmax", "uniform"])
@pytest.mark.parametrize("allowed", [800, 2])
def test_of_many_experts_a_token_meets_its_own_alone_and_the_sum_is_that_of_the_formula(
    mixing, weighting, allowed
):
    factors, prototypes, x = draw_many()
    gate = TokenGate(prototypes, np.arange(800) < allowed, 3, "standard_dot", weighting, mixing)
    layer = {**factors, "gate": gate}
    assert "cond[" in str(jax.make_jaxpr(gating.gated_delta)(x, layer))
    found = jax.jit(gating.gated_delta)(x, layer)
    weights = np.asarray(gating.gate_weights(x, gate))
    assert ((weights > 0).sum(axis=-1) == min(3, allowed)).all()
    a, b = factors["lora_a"], factors["lora_b"]
    if mixing == "outputs":
        wanted = np.einsum("bte,bti,eir,ero->bto", weights, x, a, b, optimize=True)
    else:
        mixed = np.einsum("bte,bti,eir->btr", weights, x, a, optimize=True)
        wanted = np.einsum("btr,bte,ero->bto", mixed, weights, b, optimize=True)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_of_many_experts_those_that_tie_share_a_token_too():
    factors, prototypes, x = draw_many()
    prototypes[:100] = 9 * prototypes[0]  # alike, and a token may use one
    gate = TokenGate(prototypes, np.ones(800, bool), 1, "standard_dot")
    weights = np.asarray(gating.gate_weights(x, gate))
    assert {1, 100} <= set((weights > 0).sum(axis=-1).ravel().tolist())
    a, b = factors["lora_a"], factors["lora_b"]
    wanted = np.einsum("bte,bti,eir,ero->bto", weights, x, a, b, optimize=True)
    found = gating.gated_delta(jnp.asarray(x), {**factors, "gate": gate})
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mixing", ["outputs", "factors"])
def test_of_many_experts_the_gradient_too_is_that_of_the_formula(mixing):
    factors, prototypes, x = draw_many()
    gate = TokenGate(prototypes, np.ones(800, bool), 3, "norm", mixing=mixing)

    def add_by_formula(x, factors):
        weights = gating.gate_weights(x, gate)[..., None]
        inner = weights * jnp.einsum("bti,eir->bter", x, factors["lora_a"])
        if mixing == "factors":
            inner = weights * inner.sum(axis=-2, keepdims=True)
        return jnp.einsum("bter,ero->bto", inner, factors["lora_b"])

    def pull(add):
        run = jax.jit(jax.grad(lambda *given: jnp.sin(add(*given)).sum(), argnums=(0, 1)))
        return run(jnp.asarray(x), jax.tree.map(jnp.asarray, factors))

    found = pull(lambda x, factors: gating.gated_delta(x, {**factors, "gate": gate}))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), found, pull(add_by_formula))


def test_a_score_is_the_length_of_what_all_directions_see_however_many_experts_have_them():
    rng = np.random.default_rng(5)
    prototypes = rng.normal(size=(83, 6, 16)).astype(np.float32)
    x = rng.normal(size=(2, 5, 6)).astype(np.float32)
    scores = gating.score_experts(x, TokenGate(prototypes, np.arange(83) != 7, 2, "norm"))
    wanted = np.sqrt((np.einsum("bti,eik->btek", x, prototypes, optimize=True) ** 2).sum(axis=-1))
    wanted[..., 7] = -np.inf
    np.testing.assert_allclose(scores, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"k": 0}, "got 0"),
        ({"similarity": "standard_dot"}, "one direction for dot products, got"),
        ({"prototypes": {}}, "difference in"),
    ],
)
def test_a_gate_that_does_not_fit_is_refused(trained, change, said):
    stacked = stack(trained)
    given = {"prototypes": prototypes(stacked), "k": 2} | change
    with pytest.raises(UserError, match=said):
        gating.make_gated_tree(stacked, **given)


def test_experts_that_are_no_lora_are_refused(experts):
    with pytest.raises(UserError, match="LoRA"):
        gating.make_gated_tree(stack(experts), {}, k=1)
