"""Products: matrix products in the type that a network computes in, whose gradients are summed in float32.

A kernel may be wider than what it is multiplied by: float32 beside bfloat16 activations. The product is then
bfloat16, but the gradient of the kernel, a sum over all tokens of all devices, is made and summed in float32.
Left to itself JAX makes it in bfloat16, and a mesh adds it up in bfloat16.

A float32 network wants every product in float32. Accelerators multiply bfloat16 parts of float32 numbers
unless they are told otherwise, so a network runs `exactly` where that is what it computes in.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float

from elm_jax.aot.program import traced_platform
from elm_jax.axes import Array

TPU_SUBLANES = 8  # of a register
# What a layer keeps for its gradient: the results of its large products. What is cheap is computed again:
# norms and activations would keep several arrays for each one that the products around them need, and
# attention its weights before and after dropout, the largest arrays of all.
REMAT_SAVE_NAME = "saved"


def keep(x: Array) -> jax.Array:
    """Returns x, marked as what a layer keeps for its gradient."""
    return checkpoint_name(jnp.asarray(x), REMAT_SAVE_NAME)


def precision_context(dtype: str) -> AbstractContextManager[Any]:
    """Returns the context in which products of a network of that type are traced."""
    return jax.default_matmul_precision("float32") if dtype == "float32" else nullcontext()


def with_config_precision(method: Callable[..., Any]) -> Callable[..., Any]:
    """Traces a method of a module with a `config` in the precision that its `dtype` promises."""

    @wraps(method)
    def run(self: Any, *arguments: Any, **options: Any) -> Any:
        with precision_context(self.config.dtype):
            return method(self, *arguments, **options)

    return run


def multiply(x: Float[Array, "*places I"], kernel: Float[Array, "I O"]) -> Float[Array, "*places O"]:
    """Returns x times a kernel of two axes, by `einsum`, in the form that is fast on the traced platform.

    On XLA's CPU backend a gradient takes 1.4 times as long unless the places are one axis. On a TPU one axis
    keeps norms, dropout and residuals from being fused with the product.
    """
    if traced_platform() == "cpu":
        return einsum("ni,io->no", x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], -1)
    places = "abcdefgh"[: x.ndim - 1]
    return einsum(f"{places}i,io->{places}o", x, kernel)


def multiply_rows(axes: str, x: Float[Array, "B N I"], kernel: Float[Array, "B _ _"]) -> jax.Array:
    """Returns `einsum(axes, x, kernel)` of a kernel for each of B, as [B, N, O].

    A TPU's compiler makes batched products of one row out of vector instructions, which take four times as
    long as the multipliers with eight. So a single row is repeated there; results are the same in every row.
    """
    if x.shape[1] != 1 or traced_platform() != "tpu":
        return einsum(axes, x, kernel)
    repeated = jnp.broadcast_to(x, (x.shape[0], TPU_SUBLANES, x.shape[2]))
    # All are equal. The largest is taken within the product, a slice of it would be copied.
    return einsum(axes, repeated, kernel).max(axis=1, keepdims=True)


def materialize(x: Array) -> jax.Array:
    """Returns x, which a TPU is made to compute once; on other platforms nothing is asked for.

    A TPU's compiler fuses what enters a product into it, and then computes it for every tile of the result.
    """
    x = jnp.asarray(x)
    return jax.lax.optimization_barrier(x) if traced_platform() == "tpu" else x


def einsum(axes: str, x: Array, kernel: Array) -> jax.Array:
    """Returns `jnp.einsum(axes, x, kernel)` in the type of x; the kernel's gradient is summed in its own.

    Args:
        axes: as of `jnp.einsum`, of two operands. Each axis of one is in the other or in the result.
        x: activations.
        kernel: in the type of x, or a wider one.
    """
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    if kernel.dtype == x.dtype:
        return jnp.einsum(axes, x, kernel)
    # The gradient is traced later, where the context is another one: it is handed the precision.
    return _einsum(axes, precision, x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _einsum(axes: str, precision: Any, x: Array, kernel: Array) -> jax.Array:
    return jnp.einsum(axes, x, kernel.astype(x.dtype), precision=precision)


def _forward(axes: str, precision: Any, x: Any, kernel: Any) -> tuple[jax.Array, tuple[Any, Any]]:
    # What is frozen gets no gradient, so its inputs are not kept for one.
    kept = x.value if kernel.perturbed else None
    result: Any = _einsum(axes, precision, x.value, kernel.value)
    return result, (kept, kernel.value)


def _backward(axes: str, precision: Any, residuals: tuple[Any, Any], gradient: Any) -> Any:
    x, kernel = residuals
    if isinstance(gradient, jax.custom_derivatives.SymbolicZero):
        return None, None
    inputs, result = axes.split("->")
    of_x, of_kernel = inputs.split(",")
    narrow = kernel.astype(gradient.dtype)
    to_x = jnp.einsum(f"{result},{of_kernel}->{of_x}", gradient, narrow, precision=precision)
    if x is None:
        return to_x, None
    to_kernel = jnp.einsum(
        f"{of_x},{result}->{of_kernel}", x, gradient, precision=precision, preferred_element_type=kernel.dtype
    )
    return to_x, to_kernel


_einsum.defvjp(_forward, _backward, symbolic_zeros=True)
