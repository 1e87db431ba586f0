"""Products: the matrix products of a compiled program, their types and their FLOPs.

XLA writes a TPU's products as convolutions: batch and expert axes become spatial axes of a window, with
padding and dilation such that most places of the window fall on nothing. Only those on an element count.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from elm_jax.aot.hlo import Computation, Instruction, Module

PRODUCT_OPCODES = ("convolution", "dot")


@dataclass(frozen=True)
class MatrixProduct:
    """One matrix product of a program.

    Attributes:
        operands: the element types of its two operands, such as ("bf16", "bf16").
        result: the element type of its result.
        precision: "default", "high" or "highest"; by default a TPU rounds float32 operands to bfloat16.
        flops: of one run; a multiplication and an addition are two.
        op_name: the JAX operation that it came from.
    """

    operands: tuple[str, str]
    result: str
    precision: str
    flops: int
    op_name: str


@dataclass(frozen=True)
class _Axis:
    """One spatial axis of a convolution."""

    size: int
    stride: int
    pad: int
    lhs_dilate: int
    rhs_dilate: int


def find_products(
    module: Module, computation: Computation, instruction: Instruction
) -> Iterator[MatrixProduct]:
    """Yields the products that an instruction makes: its own, or those inside a fusion."""
    if instruction.opcode in PRODUCT_OPCODES:
        yield _product(computation, instruction)
    for inside, inner in module.fused(instruction):
        if inner.opcode in PRODUCT_OPCODES:
            yield _product(inside, inner)


def _product(computation: Computation, instruction: Instruction) -> MatrixProduct:
    left, right = (computation.by_name[name].shapes[0] for name in instruction.operands[:2])
    out = instruction.shapes[0]
    count = _convolution if instruction.opcode == "convolution" else _dot
    precision = re.search(r"operand_precision=\{(\w+)", instruction.attributes)
    return MatrixProduct(
        operands=(left.dtype, right.dtype),
        result=out.dtype,
        precision=precision[1] if precision else "default",
        flops=count(instruction.attributes, left.dims, right.dims, out.dims),
        op_name=instruction.op_name,
    )


def _dot(attributes: str, left: Sequence[int], right: Sequence[int], out: Sequence[int]) -> int:
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", attributes)
    dims = [int(dim) for dim in contracted[1].split(",") if dim] if contracted else []
    return 2 * math.prod(out) * math.prod(left[dim] for dim in dims)


def _convolution(attributes: str, left: Sequence[int], right: Sequence[int], out: Sequence[int]) -> int:
    """Returns the FLOPs of a convolution: of every position of the window that falls on an element."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    if labels is None:
        return 0
    of_left, of_right, of_out = labels.groups()
    # Grouped features stand in the kernel's "i" already, and grouped batches in the result's "b".
    fused = right[of_right.index("i")] * out[of_out.index("f")] * out[of_out.index("b")]
    for number, axis in enumerate(_window(attributes)):
        spatial = str(number)
        fused *= _positions(left[of_left.index(spatial)], out[of_out.index(spatial)], axis)
    return 2 * fused


def _positions(size: int, out: int, axis: _Axis) -> int:
    """Returns at how many pairs of a result's place and a window's place an element of the input stands.

    >>> _positions(8, 8, _Axis(size=8, stride=7, pad=7, lhs_dilate=8, rhs_dilate=1))
    8
    """
    places = (np.arange(out) * axis.stride)[:, None] + np.arange(axis.size) * axis.rhs_dilate - axis.pad
    within = (places >= 0) & (places <= (size - 1) * axis.lhs_dilate) & (places % axis.lhs_dilate == 0)
    return int(within.sum())


def _window(attributes: str) -> list[_Axis]:
    """Returns the spatial axes of `window={size=8x1 stride=7x1 pad=7_7x0_0}`; 1 or no padding by default."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    if found is None:
        return []
    told = dict(part.split("=") for part in found[1].split())
    sizes = told["size"].split("x")

    def values(key: str, default: str) -> list[str]:
        return told[key].split("x") if key in told else [default] * len(sizes)

    columns = zip(
        sizes,
        values("stride", "1"),
        (pads.split("_")[0] for pads in values("pad", "0_0")),
        values("lhs_dilate", "1"),
        values("rhs_dilate", "1"),
        strict=True,
    )
    return [_Axis(*map(int, column)) for column in columns]
