"""HLO: the text of a compiled program, read into computations and instructions.

XLA's `compiled.as_text()` names computations; each is a list of instructions, one a line:

    ROOT %name = type opcode(operands), attribute=..., backend_config={...}

Nothing is interpreted here; `loops`, `products`, `collectives` and `costs` do that.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16, "c64": 64, "c128": 128}
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_TILED = re.compile(r"\{([\d,]+):T\((\d+)(?:,(\d+))?\)")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_METADATA = re.compile(r"kernel_metadata=\{[^{}]*\}")  # of several lines
_NAME = re.compile(r"%([\w.\-]+)")
_COMPUTATION_REFERENCES = re.compile(
    r"(calls|body|condition|to_apply|\w+_computations?)=(\{[^}]*\}|%?[\w.\-]+)"
)


@dataclass(frozen=True, slots=True)
class ArrayShape:
    """One array of an instruction's result.

    Attributes:
        dtype: XLA's name, such as "bf16".
        dims: the sizes.
        layout: what stands in braces after the sizes: their order, tiles and memory space; "" if nothing.
    """

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""

    @property
    def bytes(self) -> int:
        """The bytes of its elements."""
        return math.prod(self.dims) * _bits(self.dtype) // 8

    @property
    def hbm_bytes(self) -> int:
        """The bytes that it takes in a TPU's HBM, filled up to whole tiles; 0 if it lies elsewhere."""
        if "S(" in self.layout:
            return 0
        tiled = _TILED.match(self.layout)
        if not tiled or not tiled[3] or len(self.dims) < 2:
            return self.bytes
        dims = list(self.dims)
        order = [int(dim) for dim in tiled[1].split(",")]
        for dim, tile in zip(order, (int(tiled[3]), int(tiled[2])), strict=False):
            dims[dim] = -(-dims[dim] // tile) * tile
        return math.prod(dims) * _bits(self.dtype) // 8


@dataclass(frozen=True)
class KernelWork:
    """What a Pallas kernel states that one call of it does.

    Attributes:
        flops: of its products.
        bytes: that it reads and writes in HBM.
        cycles: of one core, by the name of the device kind; products are in them.
    """

    flops: int
    bytes: int
    cycles: Mapping[str, int]


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        name: its name, without the percent sign.
        opcode: what it does, such as "fusion".
        result: the type of its result, as written.
        arguments: what stands between the parentheses, as written.
        attributes: what follows them, as written.
        root: whether it is the result of its computation.
    """

    name: str
    opcode: str
    result: str
    arguments: str
    attributes: str
    root: bool = False

    @cached_property
    def shapes(self) -> tuple[ArrayShape, ...]:
        """The arrays of its result; several if that is a tuple."""
        return parse_shapes(self.result)

    @cached_property
    def operands(self) -> tuple[str, ...]:
        """The names of the instructions that it takes."""
        return tuple(_NAME.findall(self.arguments))

    @cached_property
    def references(self) -> Mapping[str, tuple[str, ...]]:
        """The names of computations, by the attribute that names them, such as "calls" or "body"."""
        head = self.attributes.partition(", backend_config=")[0]
        return {
            kind: tuple(re.findall(r"[\w.\-]+", names))
            for kind, names in _COMPUTATION_REFERENCES.findall(head)
        }

    @property
    def cycles(self) -> int | None:
        """The cycles that a TPU's compiler estimates for it; None if it says nothing."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(found[1]) if found else None

    @property
    def target(self) -> str:
        """What a custom call calls; "" for other instructions."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def kernel_work(self) -> KernelWork | None:
        """What a kernel of ours states; None for all else."""
        if self.opcode != "custom-call":
            return None
        cycles = re.findall(r"cycles_(\w+)\W+(\d+)", self.attributes)
        stated = [re.search(rf'"{name}":"?(\d+)', self.attributes) for name in ("flops", "bytes_accessed")]
        flops, moved = (int(found[1]) if found else 0 for found in stated)
        return KernelWork(flops, moved, {kind: int(count) for kind, count in cycles}) if cycles else None

    @property
    def op_name(self) -> str:
        """The path of the JAX operation that it came from; "" if the text has none."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


@dataclass(frozen=True)
class Computation:
    """A list of instructions, in the order in which they run."""

    name: str
    instructions: tuple[Instruction, ...]

    @cached_property
    def by_name(self) -> Mapping[str, Instruction]:
        """Its instructions by name."""
        return {instruction.name: instruction for instruction in self.instructions}

    @cached_property
    def root(self) -> Instruction:
        """The instruction that is its result."""
        return next((each for each in self.instructions if each.root), self.instructions[-1])

    def operand_shapes(self, instruction: Instruction) -> tuple[ArrayShape, ...]:
        """Returns the arrays that one of its instructions takes."""
        found = (self.by_name.get(name) for name in instruction.operands)
        return tuple(shape for operand in found if operand for shape in operand.shapes)


@dataclass(frozen=True)
class Module:
    """A compiled program."""

    computations: Mapping[str, Computation]
    entry: Computation

    def called_computations(self, instruction: Instruction, kind: str = "calls") -> tuple[Computation, ...]:
        """Returns the computations that an instruction names in one of its attributes."""
        names = instruction.references.get(kind, ())
        return tuple(self.computations[name] for name in names if name in self.computations)

    def fused(self, instruction: Instruction) -> Iterator[tuple[Computation, Instruction]]:
        """Yields the instructions inside a fusion, and inside fusions in it, each with its computation."""
        for computation in self.called_computations(instruction):
            for inner in computation.instructions:
                yield computation, inner
                yield from self.fused(inner)


def parse(text: str) -> Module:
    """Reads a compiled program.

    Args:
        text: what `compiled.as_text()` returns.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry = name = ""
    instructions: list[Instruction] = []
    for line in _METADATA.sub(lambda found: found[0].replace("\n", ""), text).splitlines():
        if name and line.startswith("}"):
            computations[name] = Computation(name, tuple(instructions))
            name, instructions = "", []
        elif name:
            if found := _INSTRUCTION.match(line):
                arguments, attributes = _split(found[5])
                instructions.append(
                    Instruction(found[2], found[4], found[3], arguments, attributes, bool(found[1]))
                )
        elif line[:1] in ("%", "E") and line.rstrip().endswith("{"):
            name = line.removeprefix("ENTRY ").split()[0].lstrip("%")
            entry = name if line.startswith("ENTRY ") else entry
    if entry not in computations:
        raise ValueError("Expected the text of a compiled program, got one without an entry computation")
    return Module(computations, computations[entry])


def parse_shapes(text: str) -> tuple[ArrayShape, ...]:
    """Returns the arrays of a type as XLA writes it.

    >>> parse_shapes("(f32[2,3]{1,0:T(8,128)}, s32[])")[0]
    ArrayShape(dtype='f32', dims=(2, 3), layout='{1,0:T(8,128)}')
    """
    return tuple(
        ArrayShape(dtype, tuple(int(size) for size in sizes.split(",") if size), layout)
        for dtype, sizes, layout in _SHAPE.findall(text)
    )


def _split(text: str) -> tuple[str, str]:
    """Splits what follows an opening parenthesis into what stands before and after the closing one."""
    depth = 1
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return text[: found.start()], text[found.end() :].removeprefix(", ")
    return text, ""


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    found = re.match(r"[a-z]+(\d+)", dtype)  # f32, s4, f8e4m3fn
    return int(found[1]) if found else 32
