"""Remat: layers computed again for the gradient, which changes no number and keeps less."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elm_jax.models import paths
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import T5, init_params

RNG = np.random.default_rng(10)
PROMPTS = RNG.integers(3, 96, (8, 48)).astype(np.int32)


@pytest.fixture(scope="module")
def gradients():
    """The gradient of 12 layers of encoder, with dropout, compiled without remat and with."""
    plain = find_config(
        "tiny",
        vocab_size=96,
        emb_dim=32,
        mlp_dim=48,
        num_encoder_layers=12,
        num_decoder_layers=1,
        dropout_rate=0.1,
    )
    # Drawn on the host: compiling their first values takes longer than the test.
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), plain))
    params = jax.tree.map(lambda leaf: RNG.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)

    def compiled(config):
        def loss(params):
            rngs = {"dropout": jax.random.key(1)}
            encoded = T5(config, train=True).apply({"params": params}, PROMPTS, method="encode", rngs=rngs)
            return (jnp.asarray(encoded)[:, :, 0] ** 3).mean()

        return jax.jit(jax.grad(loss)).lower(params).compile()

    return params, compiled(plain), compiled(replace(plain, remat=True))


def test_remat_changes_no_gradient_dropout_included(gradients):
    params, plain, remat = gradients
    wanted, found = (paths.flatten(gradient(params)["encoder"]) for gradient in (plain, remat))
    for path, leaf in wanted.items():
        largest = np.abs(leaf).max()
        assert largest > 0, path
        np.testing.assert_allclose(found[path], leaf, rtol=0, atol=1e-6 * largest, err_msg=path)


def test_remat_of_a_scanned_stack_more_than_halves_what_a_gradient_keeps(gradients):
    plain, remat = (gradient.memory_analysis().temp_size_in_bytes for gradient in gradients[1:])
    assert remat < plain / 2
