"""Attention kernel: T5's attention as a Pallas kernel for TPUs, forward and backward.

The plain form writes arrays of rows x heads x queries x keys to memory, several times. Here they stay on the
chip: logits, the bias that all rows share, segments, softmax in float32 and dropout are computed block by
block, and once more in the backward pass, which keeps nothing of that size. Queries, keys and values stay
[N, Q, W] with all heads side by side, so nothing is transposed in memory.

The grid is (heads taken together, blocks of queries, rows). Rows are innermost, so a block of the bias is
read once for all of them, and its gradient is added up while it stays on the chip.
"""

import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Float, Int, UInt32

from elm_jax import switches
from elm_jax.aot.program import traced_platform
from elm_jax.axes import Array
from elm_jax.models import products
from elm_jax.models.attention_tiles import LANES, Shape, backward_kernel, forward_kernel

# Instructions of the schedules of libtpu 0.0.42.1, of one core: for a step of the grid, and for a register of
# weights, forward without dropout and with it, backward without a gradient of the bias and with it. On a v4
# products of integers, of which dropout has two, are shifts and sums.
_STEP_CYCLES = {"forward": 400, "backward": 600}
_REGISTER_CYCLES: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "v4": {"forward": (7.9, 36.7), "backward": (8.9, 14.0)},
    "v5e": {"forward": (7.1, 10.2), "backward": (9.9, 13.9)},
    "v5p": {"forward": (7.1, 10.2), "backward": (9.9, 13.9)},
    "v6e": {"forward": (7.1, 10.2), "backward": (9.9, 13.9)},
}
KERNEL_ENV_VARIABLE = "ELM_ATTENTION_KERNEL"
"""The environment variable that keeps to the plain form if it says off."""
_MIN_ATTENTION_WEIGHTS = (
    8192  # of a head in a row; for fewer a step of the grid costs as much as what it saves
)
_MOST_KEYS = 2048  # of which the blocks of one step fit on the chip


def should_use_kernel(queries: int, keys: int, heads: int, head_dim: int) -> bool:
    """Returns whether the kernel computes attention of these sizes on the traced platform."""
    if switches.is_off(KERNEL_ENV_VARIABLE, os.environ):
        return False
    whole = heads * head_dim % LANES == 0 and (LANES % head_dim == 0 or head_dim % LANES == 0)
    fits = keys % 8 == 0 and keys <= _MOST_KEYS and queries % (8 if queries < LANES else LANES) == 0
    return traced_platform() == "tpu" and whole and fits and queries * keys >= _MIN_ATTENTION_WEIGHTS


def count_blocks(heads: int, head_dim: int) -> int:
    """Returns how many blocks of heads that are taken together there are."""
    return heads * head_dim // max(LANES, head_dim)


class Arguments(NamedTuple):
    """What both passes take; None for what there is not.

    Attributes:
        query: [N, Q, W].
        key: [N, K, W].
        value: [N, K, W].
        query_segments: a query sees the keys of its own segment.
        key_segments: of the keys.
        bias: of every head, float32, added to the logits; keys before queries.
        query_dropout_seeds: what dropout draws from for every query of every head.
        key_dropout_seeds: the same for every key. A weight is kept if the hash of the sum reaches a
            threshold.
    """

    query: Float[Array, "N Q W"]
    key: Float[Array, "N K W"]
    value: Float[Array, "N K W"]
    query_segments: Int[Array, "N Q"]
    key_segments: Int[Array, "N K"]
    bias: Float[Array, "H K Q"] | None
    query_dropout_seeds: UInt32[Array, "N H Q"] | None
    key_dropout_seeds: UInt32[Array, "N K"] | None


AXES: Any = Arguments._make(
    (
        ("batch", None, "heads"),
        ("batch", None, "heads"),
        ("batch", None, "heads"),
        ("batch", None),
        ("batch", None),
        ("heads", None, None),
        ("batch", "heads", None),
        ("batch", None),
    )
)
"""The logical axes of the arguments."""


def attend(head_dim: int, causal: bool, rate: float, given: Arguments) -> Float[Array, "N Q W"]:
    """Returns what queries read of the values.

    Args:
        head_dim: P.
        causal: whether a query sees no key after it.
        rate: of dropout; 0 if there are no words.
        given: the arrays.
    """
    rows, queries, width = given.query.shape
    keys, biased = given.key.shape[1], given.bias is not None
    shape = Shape(rows, queries, keys, width // head_dim, head_dim, causal, rate, biased)
    differentiable = (given.query, given.key, given.value, given.bias)
    return _attend(shape, differentiable, (*given[3:5], *given[6:]))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(shape: Shape, states: Any, fixed: Any) -> Array:
    return forward(shape, _join(states, fixed))[0]


def _attend_forward(shape: Shape, states: Any, fixed: Any) -> tuple[Array, Any]:
    learns = states[3] is not None and states[3].perturbed
    plain = jax.tree.map(
        lambda each: each.value, (states, fixed), is_leaf=lambda each: hasattr(each, "perturbed")
    )
    results = tuple(map(products.keep, forward(shape, _join(*plain))))
    return results[0], (plain, results, () if learns else None)


def _attend_backward(shape: Shape, residuals: Any, gradient: Any) -> Any:
    (states, fixed), results, learns = residuals
    if isinstance(gradient, jax.custom_derivatives.SymbolicZero):
        return (None,) * 4, (None,) * 4
    found = backward(shape, learns is not None, _join(states, fixed), results, gradient)
    return (*found, None)[:4], (None,) * 4


_attend.defvjp(_attend_forward, _attend_backward, symbolic_zeros=True)


def _join(states: Any, fixed: Any) -> Arguments:
    return Arguments._make((*states[:3], *fixed[:2], states[3], *fixed[2:]))


def _specs(shape: Shape) -> dict[str, pl.BlockSpec]:
    """Returns the blocks of a step of the grid (heads h, block b of queries, row n)."""
    wide, block, keys = shape.wide, shape.block, shape.keys
    return {
        "query": pl.BlockSpec((1, block, wide), lambda h, b, n: (n, b, h)),
        "key": pl.BlockSpec((1, keys, wide), lambda h, b, n: (n, 0, h)),
        "query_row": pl.BlockSpec((1, 1, block), lambda h, b, n: (n, 0, b)),
        "key_row": pl.BlockSpec((1, 1, keys), lambda h, b, n: (n, 0, 0)),
        "bias": pl.BlockSpec((shape.together, keys, block), lambda h, b, n: (h, 0, b)),
        "query_rows": pl.BlockSpec((1, 1, shape.together, block), lambda h, b, n: (n, h, 0, b)),
        "kept": pl.BlockSpec((1, 1, shape.together, shape.words, block), lambda h, b, n: (n, h, 0, 0, b)),
        "to_key": pl.BlockSpec((1, 1, keys, wide), lambda h, b, n: (b, n, 0, h)),
    }


def _inputs(shape: Shape, arguments: Arguments) -> tuple[list[Any], list[Any]]:
    """Returns the arrays that both kernels take, and their blocks."""
    spec, given = _specs(shape), arguments
    arrays = [given.query, given.key, given.value]
    arrays += [given.query_segments[:, None], given.key_segments[:, None]]
    blocks = [spec["query"], spec["key"], spec["key"], spec["query_row"], spec["key_row"]]
    if given.bias is not None:
        arrays, blocks = [*arrays, given.bias], [*blocks, spec["bias"]]
    if given.query_dropout_seeds is not None and given.key_dropout_seeds is not None:
        words = given.query_dropout_seeds.reshape(shape.rows, -1, shape.together, shape.queries)
        arrays += [words, given.key_dropout_seeds[:, None]]
        blocks += [spec["query_rows"], spec["key_row"]]
    return arrays, blocks


def forward(shape: Shape, arguments: Arguments) -> tuple[Any, ...]:
    """Returns what queries read of the values, and what the backward pass needs.

    That is the logarithms of the sums of the weights, and with dropout the bits of what is kept.
    """
    arrays, blocks = _inputs(shape, arguments)
    spec, query = _specs(shape), arguments.query
    rows = (shape.rows, shape.heads // shape.together, shape.together)
    outputs = [
        jax.ShapeDtypeStruct(query.shape, query.dtype),
        jax.ShapeDtypeStruct((*rows, shape.queries), jnp.float32),
    ]
    out_specs = [spec["query"], spec["query_rows"]]
    if shape.rate:
        outputs.append(jax.ShapeDtypeStruct((*rows, shape.words, shape.queries), jnp.int32))
        out_specs.append(spec["kept"])
    return pl.pallas_call(
        partial(forward_kernel, shape),
        in_specs=blocks,
        out_specs=out_specs,
        out_shape=outputs,
        scratch_shapes=[pltpu.VMEM((shape.wide, shape.keys), query.dtype)],
        **_plan(shape, (*arrays, *outputs), "forward", more=shape.rate > 0),
    )(*arrays)


def backward(
    shape: Shape, learn_bias: bool, given: Arguments, results: Sequence[Array], gradient: Array
) -> tuple[Any, ...]:
    """Returns the gradients of queries, keys and values, and of the bias if it is learnt.

    Args:
        shape: of the kernel.
        learn_bias: whether the bias has a gradient.
        given: what `forward` took.
        results: what it returned.
        gradient: of its first result.
    """
    arrays, blocks = _inputs(shape, given._replace(query_dropout_seeds=None, key_dropout_seeds=None))
    spec, parts = _specs(shape), shape.grid[1]
    # Blocks of queries each have their part of the gradients of keys, which are added up afterwards.
    dtype = given.key.dtype if parts == 1 else jnp.float32
    of_keys = jax.ShapeDtypeStruct((parts, *given.key.shape), dtype)
    outputs = [jax.ShapeDtypeStruct(given.query.shape, given.query.dtype), of_keys, of_keys]
    out_specs = [spec["query"], spec["to_key"], spec["to_key"]]
    if learn_bias and given.bias is not None:
        outputs.append(jax.ShapeDtypeStruct(given.bias.shape, jnp.float32))
        out_specs.append(spec["bias"])
    arrays += [*results, gradient]
    of_results = [spec["query"], spec["query_rows"], spec["kept"]][: len(results)]
    sums = pltpu.VMEM((shape.keys, shape.wide), jnp.float32)
    to_query, to_key, to_value, *rest = pl.pallas_call(
        partial(backward_kernel, shape, learn_bias),
        in_specs=[*blocks, *of_results, spec["query"]],
        out_specs=out_specs,
        out_shape=outputs,
        scratch_shapes=[sums, sums, pltpu.VMEM((shape.wide, shape.keys), given.key.dtype)],
        **_plan(shape, (*arrays, *outputs), "backward", more=learn_bias),
    )(*arrays)
    if parts > 1:
        to_key, to_value = (x.sum(axis=0, keepdims=True) for x in (to_key, to_value))
    return to_query, *(x[0].astype(given.key.dtype) for x in (to_key, to_value)), *rest


def _plan(shape: Shape, arrays: Sequence[Any], kernel: str, *, more: bool) -> dict[str, Any]:
    """Returns the grid of a Pallas call and the work that it states, from which its seconds are estimated.

    Args:
        shape: of the kernel.
        arrays: all that it reads and writes, each once.
        kernel: "forward" or "backward".
        more: whether it does what not every one does: dropout forward, a gradient of the bias backward.
    """
    weights = shape.rows * shape.heads * shape.queries * shape.keys
    steps, tiles = math.prod(shape.grid), -(-shape.queries // LANES)
    registers = shape.rows * shape.heads * tiles * -(-shape.keys // 8)
    cycles = {
        f"cycles_{kind}": str(round(steps * _STEP_CYCLES[kernel] + registers * of[kernel][more]))
        for kind, of in _REGISTER_CYCLES.items()
    }
    products = {"forward": 2, "backward": 5}[kernel]
    return {
        "name": f"attention_{kernel}",
        "grid": shape.grid,
        "compiler_params": pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary", "arbitrary")),
        "cost_estimate": pl.CostEstimate(
            flops=2 * weights * shape.head_dim * products,
            transcendentals=weights,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in arrays),
        ),
        "metadata": cycles,
    }
