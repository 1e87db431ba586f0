"""Loops: how often the body of a `while` runs, worked out from its counter.

A TPU's text has no trip counts. The counter is an element of the loop's tuple that the condition compares
with a bound; its first value stands before the loop, and what is added to it at the end of the body.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from elm_jax.aot.hlo import Computation, Instruction, Module

_SAME = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done", "optimization-barrier")


@dataclass(frozen=True)
class AffineExpression:
    """A scalar: a constant, or an element of the loop's tuple with a constant added.

    Attributes:
        element: the index of the element; None for a constant.
        offset: the constant.
    """

    element: int | None
    offset: int


@dataclass(frozen=True)
class _Bound:
    """A comparison that keeps a loop running."""

    left: AffineExpression
    direction: str
    right: AffineExpression


def count_trips(module: Module, around: Computation, loop: Instruction) -> int | None:
    """Returns how often a loop's body runs at most; None if that does not follow from its text.

    Args:
        module: the program.
        around: the computation that the loop stands in.
        loop: the `while` instruction.
    """
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known[1])
    [condition], [body] = (
        module.called_computations(loop, "condition"),
        module.called_computations(loop, "body"),
    )
    before = _elements(around, loop.operands[0])
    after = _elements(body, body.root.name)

    def begins_with(element: int) -> int | None:
        value = _affine_expression(module, around, before[element]) if element < len(before) else None
        return value.offset if value and value.element is None else None

    def step(element: int) -> int | None:
        value = _affine_expression(module, body, after[element]) if element < len(after) else None
        return value.offset if value and value.element == element else None

    def limit(value: AffineExpression) -> int | None:
        if value.element is None:
            return value.offset
        begun = begins_with(value.element)
        return begun + value.offset if begun is not None and step(value.element) == 0 else None

    counts: list[int] = []
    for bound in _bounds(module, condition, condition.root.name):
        if bound.left.element is None:
            continue
        begun, by, end = begins_with(bound.left.element), step(bound.left.element), limit(bound.right)
        if begun is not None and by and end is not None:
            counts.append(_trips(begun + bound.left.offset, by, end, bound.direction))
    return min(counts, default=None)


def _trips(begun: int, step: int, end: int, direction: str) -> int:
    """Returns how often a counter passes.

    >>> _trips(0, 2, 8, "LT"), _trips(4, -1, 0, "GE"), _trips(0, 1, 5, "NE")
    (4, 5, 5)
    """
    if direction in ("LE", "GE"):
        end += 1 if direction == "LE" else -1
    if direction == "EQ":
        return 1 if begun == end else 0
    return max(0, -(-(end - begun) // step))


def _elements(computation: Computation, name: str) -> tuple[str, ...]:
    """Returns the names of what a tuple is made of; () if that cannot be seen."""
    instruction = computation.by_name[name]
    if instruction.opcode in _SAME:
        return _elements(computation, instruction.operands[0])
    return instruction.operands if instruction.opcode == "tuple" else ()


def _bounds(
    module: Module,
    computation: Computation,
    name: str,
    arguments: Sequence[AffineExpression | None] | None = None,
) -> list[_Bound]:
    """Returns the comparisons that must all hold for a truth value to be true, where readable."""
    instruction = computation.by_name[name]
    if instruction.opcode in ("and", *_SAME):
        return [
            bound
            for operand in instruction.operands
            for bound in _bounds(module, computation, operand, arguments)
        ]
    if instruction.opcode in ("fusion", "call"):
        inner = _callee(module, instruction)
        values = [_affine_expression(module, computation, each, arguments) for each in instruction.operands]
        return _bounds(module, inner, inner.root.name, values)
    if instruction.opcode != "compare":
        return []
    left, right = (_affine_expression(module, computation, each, arguments) for each in instruction.operands)
    direction = re.search(r"direction=(\w+)", instruction.attributes)
    if left is None or right is None or direction is None:
        return []
    mirrored = {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE"}
    if left.element is None:
        return [_Bound(right, mirrored.get(direction[1], direction[1]), left)]
    return [_Bound(left, direction[1], right)]


def _affine_expression(
    module: Module,
    computation: Computation,
    name: str,
    arguments: Sequence[AffineExpression | None] | None = None,
) -> AffineExpression | None:
    """Returns a scalar as a linear function of the loop's tuple; None if it is none.

    `arguments` are the values of a fused computation's parameters; without them the parameter is the tuple.
    """
    instruction = computation.by_name[name]
    operands = instruction.operands
    match instruction.opcode:
        case "constant":
            whole = re.fullmatch(r"-?\d+", instruction.arguments)
            return AffineExpression(None, int(whole[0])) if whole else None
        case "parameter":
            return arguments[int(instruction.arguments)] if arguments is not None else None
        case "get-tuple-element":
            return _element(module, computation, instruction, arguments)
        case "add" | "subtract":
            left, right = (_affine_expression(module, computation, each, arguments) for each in operands)
            return _add_affine_expressions(left, right, 1 if instruction.opcode == "add" else -1)
        case "fusion" | "call":
            inner = _callee(module, instruction)
            values = [_affine_expression(module, computation, each, arguments) for each in operands]
            return _affine_expression(module, inner, inner.root.name, values)
        case opcode if opcode in _SAME:
            return _affine_expression(module, computation, operands[0], arguments)
        case _:
            return None


def _element(
    module: Module,
    computation: Computation,
    instruction: Instruction,
    arguments: Sequence[AffineExpression | None] | None,
) -> AffineExpression | None:
    index = re.search(r"index=(\d+)", instruction.attributes)
    source = computation.by_name[instruction.operands[0]]
    if index is None:
        return None
    if source.opcode == "parameter":
        return AffineExpression(int(index[1]), 0) if arguments is None else None
    if source.opcode == "fusion":
        inner = _callee(module, source)
        values = [_affine_expression(module, computation, each, arguments) for each in source.operands]
        elements = _elements(inner, inner.root.name)
        return _affine_expression(module, inner, elements[int(index[1])], values) if elements else None
    elements = _elements(computation, source.name)
    return _affine_expression(module, computation, elements[int(index[1])], arguments) if elements else None


def _add_affine_expressions(
    left: AffineExpression | None, right: AffineExpression | None, sign: int
) -> AffineExpression | None:
    if (
        left is None
        or right is None
        or (right.element is not None and (sign < 0 or left.element is not None))
    ):
        return None
    element = left.element if left.element is not None else right.element
    return AffineExpression(element, left.offset + sign * right.offset)


def _callee(module: Module, instruction: Instruction) -> Computation:
    return (module.called_computations(instruction) or module.called_computations(instruction, "to_apply"))[0]
