"""Magnitudes: DoRA's, by which the outputs of a projection are rescaled (Liu et al. 2024, arXiv 2402.09353).

With W the kernel of a projection and A B its LoRA, DoRA computes `x (W + A B) m / n`, n the norms of the
columns of W + A B. So it is a LoRA whose outputs are scaled as (IA)³ scales them, by m / n. As the paper
proposes in section 4.3, and PEFT does, n is a constant to the gradient.

The norms are those of an expert and not of a row. They are computed once for all rows of a batch, without
W + A B itself: the squares of column o sum to `|W_o|² + 2 W_o · A B_o + B_oᵀ (Aᵀ A) B_o`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from elm_jax.axes import Array
from elm_jax.models import paths
from elm_jax.records import Params

MAGNITUDE_LEAF = "dora_magnitude"


@jax.jit  # so that no copy of the kernel is made
def column_norms(kernel: Float[Array, "*layers I O"]) -> Float[jax.Array, "*layers O"]:
    """Returns the norm of the weights of every output, in float32."""
    return jnp.linalg.norm(jnp.asarray(kernel, jnp.float32), axis=-2)


def adapted_norms(
    kernel: Float[Array, "L I O"], lora_a: Float[Array, "E L I R"], lora_b: Float[Array, "E L R O"]
) -> Float[jax.Array, "E L O"]:
    """Returns the norm of the weights of every output of kernels with a LoRA, in float32."""

    def of_layer(layer: Array) -> Array:
        """Only one layer at a time is held in float32."""
        take = partial(jax.lax.dynamic_index_in_dim, index=layer, keepdims=False)
        w = take(kernel, axis=0).astype(jnp.float32)
        a, b = (take(factor, axis=1).astype(jnp.float32) for factor in (lora_a, lora_b))
        highest: Any = {"precision": "highest"}
        # Both terms with A B: 2 Wᵀ A + B_oᵀ Aᵀ A, times B.
        crossed = 2 * jnp.einsum("io,eir->ero", w, a, **highest)
        crossed += jnp.einsum("ers,eso->ero", jnp.einsum("eir,eis->ers", a, a, **highest), b, **highest)
        squares = jnp.square(w).sum(axis=0)[None] + (crossed * b).sum(axis=1)
        return jnp.sqrt(jnp.maximum(squares, jnp.finfo(jnp.float32).tiny))

    return jnp.moveaxis(jax.lax.map(of_layer, jnp.arange(kernel.shape[0])), 0, 1)


def resolve_magnitudes(part: Params, base: Params) -> Params:
    """Returns an expert, or stacked ones, with `ia3_out` in the place of every magnitude.

    Args:
        part: Parameters of one expert, [L, …], or of stacked ones, [E, L, …], below a path.
        base: Those of the base below that path.
    """
    flat = paths.flatten(part)
    owners = [path.rpartition("/")[0] for path in flat if path.endswith(f"/{MAGNITUDE_LEAF}")]
    if not owners:
        return part
    kernels = paths.flatten(base)
    for owner in owners:
        magnitude = jnp.asarray(flat.pop(f"{owner}/{MAGNITUDE_LEAF}"))
        factors = [flat[f"{owner}/{leaf}"] for leaf in ("lora_a", "lora_b")]
        factors = [getattr(factor, "kernel", factor) for factor in factors]  # of a `GroupedKernel`
        if magnitude.ndim == 2:
            factors = [factor[None] for factor in factors]
        norms = jax.lax.stop_gradient(adapted_norms(kernels[f"{owner}/kernel"], factors[0], factors[1]))
        flat[f"{owner}/ia3_out"] = magnitude / norms.reshape(magnitude.shape)
    return paths.unflatten(flat)
