"""Experts: what they are, what they leave alone, and that each row gets its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.models import experts as ex
from elm_jax.models import paths
from elm_jax.models.sizes import size
from elm_jax.models.t5 import T5, init_params
from elm_jax.training.step import stack

RNG = np.random.default_rng(1)
PROMPTS = RNG.integers(3, 96, (6, 7)).astype(np.int32)
ANSWERS = RNG.integers(3, 96, (6, 2, 4)).astype(np.int32)


@pytest.fixture(scope="module")
def network(config, base):
    return jax.jit(
        lambda *experts: T5(config).apply(
            {"params": base}, jnp.asarray(PROMPTS), jnp.asarray(ANSWERS), *experts
        )
    )


def test_a_zero_expert_leaves_every_logit_as_it_was(network, experts, base):
    np.testing.assert_allclose(network(ex.neutral(experts[0], base)), network(), atol=1e-5)
    assert np.abs(np.asarray(network(experts[0]) - network())).max() > 0.1


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
        ex.bottleneck(jnp.asarray(x), adapter), x + gelu @ up + np.arange(4.0), atol=1e-5
    )


def test_the_original_expert_of_xl_has_25618432_parameters():
    # 96 adapters of 2 x 2048 x 64 weights and 64 + 2048 biases, and 122 norm scales of 2048.
    expert = jax.eval_shape(
        lambda: ex.init_bottleneck(jax.random.key(0), init_params(jax.random.key(0), size("xl")))
    )
    flat = paths.flatten(expert)
    adapters = sum(leaf.size for path, leaf in flat.items() if "_adapter/" in path)
    scales = sum(leaf.size for path, leaf in flat.items() if path.endswith("norm/scale"))
    assert (adapters, scales) == (25_368_576, 249_856)
    assert adapters + scales == sum(leaf.size for leaf in flat.values())


def test_cross_attention_has_no_adapter(experts):
    adapted = {path.split("/")[2] for path in paths.flatten(experts[0]) if "_adapter/" in path}
    assert adapted == {"attention_adapter", "self_attention_adapter", "mlp_adapter"}


def test_a_fresh_adapter_is_small_and_its_biases_zero(base):
    flat = paths.flatten(ex.init_bottleneck(jax.random.key(5), base, width=16))
    kernels = np.concatenate([np.ravel(leaf) for path, leaf in flat.items() if path.endswith("kernel")])
    assert 0.0095 < kernels.std() < 0.0105
    assert not any(np.any(leaf) for path, leaf in flat.items() if path.endswith("bias"))


def test_an_expert_owns_its_norm_scales(network, base):
    owned = ex.neutral(ex.init_bottleneck(jax.random.key(0), base, width=4), base)
    owned["encoder"]["encoder_norm"]["scale"] = owned["encoder"]["encoder_norm"]["scale"] * 2
    changed = {**base, "encoder": {**base["encoder"], "encoder_norm": owned["encoder"]["encoder_norm"]}}
    config = size("tiny", vocab_size=96, emb_dim=32, head_dim=8, mlp_dim=48, num_decoder_layers=3)
    by_hand = T5(config).apply({"params": changed}, jnp.asarray(PROMPTS), jnp.asarray(ANSWERS))
    np.testing.assert_allclose(network(owned), by_hand, atol=1e-5)


def test_rows_of_different_experts_in_one_batch_score_as_each_alone(network, experts):
    index = np.array([2, 0, 1, 1, 0, 2], np.int32)
    mixed = np.asarray(network(stack(experts), index))
    for expert, tree in enumerate(experts):
        rows = index == expert
        np.testing.assert_allclose(mixed[rows], np.asarray(network(tree))[rows], atol=1e-5)


def test_swapping_experts_compiles_nothing(network, experts, base):
    network(experts[0])
    compiled = network._cache_size()
    network(experts[1])
    network(ex.neutral(experts[2], base))
    assert network._cache_size() == compiled


def test_a_full_expert_is_the_base_and_stands_in_its_place(base):
    full = ex.init("full", jax.random.key(0), base)
    params, beside = ex.place("full", base, full)
    assert beside is None
    assert jax.tree.all(jax.tree.map(np.array_equal, params, base))


def test_an_unknown_kind_is_refused(base):
    with pytest.raises(UserError, match="one of bottleneck, full; 'lora2' came"):
        ex.init("lora2", jax.random.key(0), base)
