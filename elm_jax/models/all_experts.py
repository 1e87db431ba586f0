"""All experts: products of every token of packed rows with the kernels of all stacked experts.

Columns of other experts are masked, so a token keeps those of its own. On a TPU this takes less time than to
gather the kernels of every segment, and to scatter their gradients. Kernels are multiplied from a copy, and
their gradients are summed in their own type.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from elm_jax.aot.program import traced_platform
from elm_jax.axes import Array, ExpertOfSegment
from elm_jax.models import products

MAX_EXPERTS_PER_SEGMENT = 4  # times the segments of a row, of which a token is multiplied by all


class SegmentExperts(NamedTuple):
    """Which of the stacked experts every segment of a packed row has.

    Attributes:
        expert_of_segment: Indices of experts.
        segments: The segment of every token, 1 to G, and 0 for padding.
    """

    expert_of_segment: ExpertOfSegment
    segments: Int[Array, "B N"]


class PerExpertParams(NamedTuple):
    """A parameter of all stacked experts, for packed rows whose segments have any of them.

    Attributes:
        value: [E, …].
        joined: Of kernels [E, I, O] a copy to multiply by, [E O, I] or, where I is the narrow side, [E I, O].
        rows: Which of them every segment has.
    """

    value: Array
    joined: Array | None
    rows: SegmentExperts


def computes_all_experts(experts: int, rows: SegmentExperts) -> bool:
    """Returns whether tokens are multiplied by the kernels of all experts, and others' products masked.

    On a TPU that takes less than gathering the kernels of every segment, and scattering their gradients,
    unless experts are many times the segments of a row.
    """
    return traced_platform() == "tpu" and experts <= MAX_EXPERTS_PER_SEGMENT * rows.expert_of_segment.shape[1]


def join_kernels(stack: Array, dtype: str) -> Float[Array, "L W D"] | None:
    """Returns the kernels of all experts joined on their narrow side, layer by layer, with no gradient.

    So a TPU's compiler reads them as it reads those of the base, with no copy of a layer before its product.
    """
    if stack.ndim != 4:
        return None
    narrow_first = stack.shape[2] < stack.shape[3]
    moved = jnp.asarray(stack, dtype).transpose((1, 0, 2, 3) if narrow_first else (1, 0, 3, 2))
    # Apart from the products: what XLA makes of a transposition that it may move into them was not measured.
    moved = jax.lax.optimization_barrier(jax.lax.stop_gradient(moved))
    return moved.reshape(moved.shape[0], -1, moved.shape[3])


def multiply(x: Float[Array, "B N I"], kernel: PerExpertParams) -> Float[Array, "B N O"]:
    """Multiplies every token by the kernel of its own expert."""
    experts, inputs, outputs = kernel.value.shape
    if inputs < outputs:
        return _multiply_own(_mask_others(jnp.tile(x, (1, 1, experts)), kernel.rows, experts), kernel)
    every = _mask_others(_multiply_by_all(x, kernel), kernel.rows, experts)
    return every.reshape(*x.shape[:2], experts, outputs).sum(axis=2)


def is_per_expert_low_rank(first: Any, second: Any) -> bool:
    """Returns whether what is between two kernels can stay apart by expert: it is narrow."""
    if not isinstance(first, PerExpertParams):
        return False
    (_, inputs, rank), (_, _, outputs) = first.value.shape, second.value.shape
    return inputs >= rank < outputs


def multiply_low_rank_pair(
    x: Float[Array, "B *tokens I"],
    first: PerExpertParams,
    second: PerExpertParams,
    between: Callable[[Array], Array],
) -> Float[Array, "B *tokens O"]:
    """Multiplies by two kernels for which `is_per_expert_low_rank` holds.

    Args:
        x: activations.
        first: the kernels of the first product.
        second: those of the second.
        between: what is computed of the columns of all experts in between, each for itself.
    """
    inner = products.keep(_multiply_by_all(x.reshape(x.shape[0], -1, x.shape[-1]), first))
    masked = _mask_others(between(inner), first.rows, first.value.shape[0])
    return _multiply_own(masked, second).reshape(*x.shape[:-1], -1)


def join_columns(vector: PerExpertParams, like: Float[Array, "B N W"]) -> Float[Array, "B N W"]:
    """Returns the vectors of all experts, one after the other, for every token."""
    return jnp.broadcast_to(vector.value.reshape(1, 1, -1), like.shape).astype(like.dtype)


def _multiply_by_all(x: Float[Array, "B N I"], kernel: PerExpertParams) -> Float[Array, "B N W"]:
    """Returns the products of every token with all kernels, W of E times O."""
    experts, _, outputs = kernel.value.shape
    if kernel.joined is None:
        y = products.einsum("bni,eio->bneo", x, kernel.value)
        return y.reshape(*x.shape[:2], -1)
    y = jnp.einsum("bni,wi->bnw", x, kernel.joined).reshape(*x.shape[:2], experts, outputs)
    return _with_gradient("bni,bneo->eio", y, x, kernel).reshape(*x.shape[:2], -1)


def _multiply_own(wide: Float[Array, "B N W"], kernel: PerExpertParams) -> Float[Array, "B N O"]:
    """Returns the product of masked columns, W of E times I, with the kernels of their experts."""
    apart = wide.reshape(*wide.shape[:2], *kernel.value.shape[:2])
    y = jnp.einsum("bnw,wo->bno", wide, kernel.joined)
    return _with_gradient("bnei,bno->eio", y, apart, kernel)


def _mask_others(wide: Float[Array, "B N W"], rows: SegmentExperts, experts: int) -> Float[Array, "B N W"]:
    """Returns the columns of all experts, with 0 in those that are not of a token's own."""
    own = _find_owners(rows)
    of_column = np.arange(wide.shape[-1], dtype=np.int32) // (wide.shape[-1] // experts)
    return jnp.where(own[..., None] == of_column[None, None], wide, 0)


def _find_owners(rows: SegmentExperts) -> Int[Array, "B N"]:
    """Returns the expert of every token; padding has that of the first segment."""
    return jnp.take_along_axis(rows.expert_of_segment, jnp.maximum(rows.segments - 1, 0), axis=1)


def _with_gradient(axes: str, y: Array, x: Array, kernel: PerExpertParams) -> jax.Array:
    """Returns y, a product of x whose gradient also reaches the kernels, in float32 sums of their type.

    Args:
        axes: as of `jnp.einsum`, of x and the gradient of y to that of the kernels.
        y: the product, made with the joined copy.
        x: what was multiplied; y itself has its gradient.
        kernel: what the copy was made from.
    """
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    owners = _find_owners(kernel.rows)
    return _identity_with_kernel_vjp(axes, precision, y, jax.lax.stop_gradient(x), kernel.value, owners)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _identity_with_kernel_vjp(
    axes: str, precision: Any, y: Array, x: Array, kernels: Array, owners: Array
) -> jax.Array:
    return jnp.asarray(y)


def _forward(
    axes: str, precision: Any, y: Array, x: Array, kernels: Array, owners: Array
) -> tuple[jax.Array, Any]:
    return jnp.asarray(y), (x, kernels, owners)


def _backward(axes: str, precision: Any, residuals: Any, gradient: Array) -> Any:
    """What is not finite stops the expert that it is of: as 0 times infinity it would reach all others."""
    x, kernels, owners = residuals
    x, finite = (jnp.where(jnp.isfinite(each), each, 0) for each in (x, gradient))
    sums = jnp.einsum(axes, x, finite, precision=precision, preferred_element_type=kernels.dtype)
    token_breaks = ~jnp.isfinite(gradient).all(axis=tuple(range(2, gradient.ndim)))
    expert = jnp.arange(kernels.shape[0], dtype=owners.dtype)
    breaks = (token_breaks[..., None] & (owners[..., None] == expert[None, None])).any(axis=(0, 1))
    return gradient, None, jnp.where(breaks[:, None, None], jnp.nan, sums), None


_identity_with_kernel_vjp.defvjp(_forward, _backward)
