"""Products: those of bfloat16 activations and float32 kernels, whose gradients stay float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elm_jax.models import products

RNG = np.random.default_rng(0)
FORMS = {
    "ni,io->no": ((6, 8), (8, 4)),
    "bni,bio->bno": ((2, 3, 8), (2, 8, 4)),
    "bni,bgio->bngo": ((2, 3, 8), (2, 5, 8, 4)),
}


def drawn(shape, dtype):
    return jnp.asarray(RNG.normal(size=shape), dtype)


@pytest.mark.parametrize("axes", FORMS)
def test_value_and_gradients_are_those_of_a_plain_einsum(axes):
    x, kernel = (drawn(shape, jnp.float32) for shape in FORMS[axes])

    def plain(x, kernel):
        return (jnp.einsum(axes, x, kernel) ** 2).sum()

    def ours(x, kernel):
        return (products.einsum(axes, x.astype(jnp.bfloat16), kernel).astype(jnp.float32) ** 2).sum()

    for found, wanted in zip(
        jax.grad(ours, (0, 1))(x, kernel), jax.grad(plain, (0, 1))(x, kernel), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=0.05, atol=0.05 * float(jnp.abs(wanted).max()))


def test_a_kernels_gradient_is_summed_in_float32():
    """1,001 ones: bfloat16 has no such number."""
    x, kernel = jnp.ones((1001, 1), jnp.bfloat16), jnp.ones((1, 1), jnp.float32)

    def loss(kernel):
        return products.einsum("ni,io->no", x, kernel).astype(jnp.float32).sum()

    gradient = jax.grad(loss)(kernel)
    assert gradient.dtype == jnp.float32
    assert gradient.item() == 1001 != float(jnp.bfloat16(1001))


def test_inputs_of_a_frozen_kernel_are_not_kept_for_its_gradient():
    kernels = drawn((5, 16, 16), jnp.float32)

    def loss(x, kernels):
        layers = jax.lax.scan(lambda x, k: (jnp.tanh(products.einsum("ni,io->no", x, k)), None), x, kernels)
        return layers[0].astype(jnp.float32).sum()

    def temporary(argument):
        x = jnp.ones((4096, 16), jnp.bfloat16)
        compiled = jax.jit(jax.grad(loss, argument)).lower(x, kernels).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    inputs = 5 * 4096 * 16 * 2
    assert temporary(1) - temporary(0) >= inputs


def test_a_float32_network_asks_for_float32_products_and_a_bfloat16_one_for_nothing():
    class Module:
        def __init__(self, dtype):
            self.config = type("Config", (), {"dtype": dtype})

        @products.with_config_precision
        def product(self, x):
            return x @ x

    x = jnp.ones((2, 2))
    for dtype, asked in (("float32", True), ("bfloat16", False)):
        text = str(jax.make_jaxpr(Module(dtype).product)(x))
        assert ("HIGHEST" in text) is asked
