"""Layers: what attention keeps, its positions, and a feed-forward of any activations."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elm_jax.models import dropout, layers, stacks
from elm_jax.models.sizes import find_config

RNG = np.random.default_rng(11)


def test_a_gradient_keeps_no_weights_of_attention():
    rows, length = 2, 50
    config = find_config("tiny", num_heads=3, head_dim=4, emb_dim=12, mlp_dim=8, num_encoder_layers=2)
    config = replace(config, dropout_rate=0.1)
    encoder = stacks.Encoder(config, train=True)
    tokens = dropout.make_token_seeds(np.arange(rows, dtype=np.uint32), None, length)
    x = jnp.asarray(RNG.normal(size=(rows, length, 12)), jnp.float32)
    seen = jnp.ones((rows, 1, length), bool)

    def encode(params):
        return encoder.apply(
            {"params": params}, x, seen, None, None, tokens, rngs={"dropout": jax.random.key(0)}
        )

    keys = {"params": jax.random.key(1), "dropout": jax.random.key(0)}
    params = encoder.init(keys, x, seen, None, None, tokens)["params"]
    _, backward = jax.vjp(encode, params)
    weights = rows * config.num_heads * length * length
    assert max(leaf.size for leaf in jax.tree.leaves(backward)) < weights


def test_relative_positions_are_laid_out_by_key_minus_query():
    # The bias of distance d is d itself: 0, 1, 2, then -3, -2, -1.
    by_distance = jnp.asarray([[0, 1, 2, -3, -2, -1]], jnp.float32)
    wanted = [[0, 1, 2], [-1, 0, 1], [-2, -1, 0]]
    assert layers.position_bias(by_distance)[0, 0].tolist() == wanted
    rows = [layers.step_position_bias(by_distance, jnp.asarray(at))[0, 0, 0].tolist() for at in range(3)]
    assert rows == wanted


@pytest.mark.parametrize(
    ("activations", "names"),
    [(("relu",), {"wi", "wo"}), (("gelu", "linear"), {"wi_0", "wi_1", "wo"})],
)
def test_a_feed_forward_has_a_projection_for_every_activation(activations, names):
    feed_forward = layers.FeedForward(find_config("tiny", emb_dim=6, mlp_dim=10, mlp_activations=activations))
    x = jnp.asarray(RNG.normal(size=(2, 3, 6)), jnp.float32)
    found, variables = feed_forward.init_with_output(jax.random.key(0), x)
    kernels = {name: np.asarray(leaf["kernel"]) for name, leaf in variables["params"].items()}
    assert kernels.keys() == names

    if "wi" in names:
        hidden = np.maximum(x @ kernels["wi"], 0)
    else:
        gate = np.asarray(x @ kernels["wi_0"])
        gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        hidden = gelu * (x @ kernels["wi_1"])
    np.testing.assert_allclose(found, hidden @ kernels["wo"], atol=1e-5)
