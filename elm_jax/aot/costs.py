"""Costs: FLOPs, seconds and collectives of a compiled TPU program, read from its text.

Seconds are the compiler's own estimates of cycles, times the trips of the loops around, over the clock. They
are a ruler to compare programs with, and no measurement: nothing ran. The compiler estimates nothing for

- collectives that block: priced by the bytes that a device sends in a ring, over two of its links;
- scatters, copies, updates of slices and other moves that are not fused: by their bytes in HBM over its
  bandwidth;
- kernels of our own: by what they state, the longest of their products at the device's peak, their bytes at
  its bandwidth, and the cycles of the compiler's schedule, counted when they were written. That is a roofline
  and no measurement either;
- sorts, traffic between slices, and custom calls that state nothing: not priced, but named in `unpriced`.

Asynchronous copies and collectives count as hidden, which is the best case.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from elm_jax.aot import hlo
from elm_jax.aot.collectives import Collective, find_collectives, find_fused_channels, merge_collectives
from elm_jax.aot.devices import DeviceKind
from elm_jax.aot.hlo import Computation, Instruction, KernelWork, Module
from elm_jax.aot.loops import count_trips
from elm_jax.aot.products import MatrixProduct, find_products

_RING_LINKS = 2  # of a TPU: a ring runs along one dimension of the torus, in both directions
# Instructions that move nothing, and those that only wait for what runs beside the program.
_FREE = frozenset(
    [
        "parameter",
        "constant",
        "get-tuple-element",
        "tuple",
        "bitcast",
        "iota",
        "after-all",
        "partition-id",
        "replica-id",
        "optimization-barrier",
        "opt-barrier",
        "add-dependency",
        "async-start",
        "async-update",
        "copy-start",
        "slice-start",
        "dynamic-slice-start",
        "send",
        "recv",
    ]
)
_FREE_CALLS = frozenset(
    [
        "AllocateBuffer",
        "AssumeGatherIndicesInBound",
        "AsyncCollectiveDone",
        "AsyncCollectiveStart",
        "ConcatBitcast",
        "Sharding",
    ]
)
_UNPRICED = ("sort",)
_PARTIAL_READ_OPCODES = (
    "slice",
    "dynamic-slice",
    "gather",
)  # that read no more of an array than they take out of it
# Which operand is the update, and how often its bytes go to or from HBM: a scatter reads before it writes.
_UPDATES: Mapping[str, tuple[int, int]] = {"dynamic-update-slice": (1, 1), "scatter": (2, 2)}
_BRANCHES = ("calls", "to_apply", "branch_computations", "true_computation", "false_computation")


@dataclass(frozen=True)
class Costs:
    """What one call of a program costs one device.

    Attributes:
        flops: of its matrix products; None for a GPU, whose products are calls into libraries.
        cycle_seconds: by the compiler's cycles.
        collective_seconds: of collectives that block.
        move_seconds: of moves that the compiler does not estimate.
        kernel_seconds: of our own kernels, by roofline.
        collectives: what devices send one another.
        unpriced: what the seconds leave out, each with how often it runs.
    """

    flops: float | None
    cycle_seconds: float | None
    collective_seconds: float | None
    move_seconds: float | None
    kernel_seconds: float | None
    collectives: tuple[Collective, ...]
    unpriced: tuple[str, ...]

    @property
    def seconds(self) -> float | None:
        """All priced seconds; None for a GPU."""
        parts = (self.cycle_seconds, self.collective_seconds, self.move_seconds, self.kernel_seconds)
        return None if None in parts else sum(part for part in parts if part is not None)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON has them."""
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Costs":
        """Returns what `to_json` was called on."""
        fields = dict(value)
        fields["collectives"] = tuple(Collective.from_json(each) for each in value["collectives"])
        fields["unpriced"] = tuple(value["unpriced"])
        return Costs(**fields)


@dataclass(frozen=True)
class ExecutedInstruction:
    """An instruction that a program runs, outside of fusions.

    Attributes:
        computation: the computation that it stands in.
        instruction: the instruction.
        times: how often one call of the program runs it.
    """

    computation: Computation
    instruction: Instruction
    times: int


def count_costs(text: str, kind: DeviceKind, mesh: Mapping[str, int]) -> Costs:
    """Returns what a compiled program costs.

    Args:
        text: what `compiled.as_text()` returns.
        kind: the devices that it was compiled for.
        mesh: the sizes of its mesh by axis, in order.
    """
    module = hlo.parse(text)
    started = find_fused_channels(module)
    flops = cycles = 0
    links = moves = kernels = 0.0
    collectives: list[tuple[Collective, int]] = []
    unpriced: Counter[str] = Counter()
    for step in iterate_instructions(module):
        computation, instruction, times = step.computation, step.instruction, step.times
        if instruction.opcode == "while":
            unpriced["loop of unknown length, counted as one run"] += times
            continue
        own = list(find_collectives(module, computation, instruction, mesh, started))
        collectives += [(each, times) for each in own]
        unpriced.update({f"{each.kind} between slices": times for each in own if each.between_slices})
        flops += times * sum(each.flops for each in find_products(module, computation, instruction))
        if instruction.cycles is not None:
            cycles += times * instruction.cycles
        elif own:
            links += times * sum(_blocking_seconds(each, kind) for each in own)
        elif instruction.kernel_work is not None:
            flops += times * instruction.kernel_work.flops
            kernels += times * _roofline_seconds(instruction.kernel_work, kind)
        elif name := _unpriced(instruction):
            unpriced[name] += times
        else:
            moves += times * _moved_bytes(module, computation, instruction) / kind.memory_bandwidth
    tpu = kind.platform == "tpu"
    return Costs(
        flops=float(flops) if tpu else None,
        cycle_seconds=cycles / kind.clock if tpu else None,
        collective_seconds=links if tpu else None,
        move_seconds=moves if tpu else None,
        kernel_seconds=kernels if tpu else None,
        collectives=merge_collectives(collectives),
        unpriced=tuple(f"{times} x {name}" for name, times in unpriced.items()) if tpu else (),
    )


def list_products(text: str) -> list[tuple[MatrixProduct, int]]:
    """Returns every matrix product of a compiled program, with how often one call runs it."""
    module = hlo.parse(text)
    return [
        (product, step.times)
        for step in iterate_instructions(module)
        for product in find_products(module, step.computation, step.instruction)
    ]


def iterate_instructions(module: Module) -> Iterator[ExecutedInstruction]:
    """Yields the instructions that one call of a program runs, those of loops once with their trips.

    A conditional counts all its branches. A loop of unknown length is yielded itself, and counts as one run.
    """

    def visit(computation: Computation, times: int) -> Iterator[ExecutedInstruction]:
        for instruction in computation.instructions:
            if instruction.opcode == "while":
                trips = count_trips(module, computation, instruction)
                if trips is None:
                    yield ExecutedInstruction(computation, instruction, times)
                for kind, runs in (("body", trips or 0), ("condition", (trips or 0) + 1)):
                    for called in module.called_computations(instruction, kind):
                        yield from visit(called, times * (1 if trips is None else runs))
            elif instruction.opcode in ("call", "conditional"):
                for kind in _BRANCHES:
                    for called in module.called_computations(instruction, kind):
                        yield from visit(called, times)
            else:
                yield ExecutedInstruction(computation, instruction, times)

    yield from visit(module.entry, 1)


def _blocking_seconds(collective: Collective, kind: DeviceKind) -> float:
    if collective.hidden:
        return 0.0
    links = min(_RING_LINKS, collective.group_size - 1)
    return collective.sent_bytes / (links * kind.link_bandwidth)


def _roofline_seconds(work: KernelWork, kind: DeviceKind) -> float:
    return max(
        work.flops / kind.peak_flops,
        work.bytes / kind.memory_bandwidth,
        work.cycles.get(kind.name, 0) / (kind.cores * kind.clock) if kind.clock else 0.0,
    )


def _unpriced(instruction: Instruction) -> str | None:
    if instruction.opcode == "custom-call" and instruction.target not in _FREE_CALLS:
        return f"custom call {instruction.target}"
    return instruction.opcode if instruction.opcode in _UNPRICED else None


def _moved_bytes(module: Module, computation: Computation, instruction: Instruction) -> int:
    """Returns the bytes that an instruction without cycles reads and writes in HBM."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done") or opcode == "custom-call":
        return 0
    if opcode == "fusion" and instruction.name.startswith("async-collective"):
        return 0
    written = sum(shape.hbm_bytes for shape in instruction.shapes)
    operands = [computation.by_name.get(name) for name in instruction.operands]
    read = [sum(shape.hbm_bytes for shape in operand.shapes) if operand else 0 for operand in operands]
    if opcode in _PARTIAL_READ_OPCODES:
        return 2 * written
    if opcode == "fusion":
        read, written = _fusion_moves(module, instruction, read, written)
    if opcode == "dynamic-update-slice":  # in place
        return 2 * read[1]
    if opcode == "scatter":  # reads and writes its target where updates fall
        return sum(read[1:]) + 2 * read[-1]
    return sum(read) + written


def _fusion_moves(
    module: Module, fusion: Instruction, whole: Sequence[int], written: int
) -> tuple[list[int], int]:
    """Returns the bytes that a fusion reads of each operand, and those that it writes.

    Where it only cuts from an operand it reads what it cuts, and where it updates a part of one in place it
    writes the part, after a scatter has read it.
    """
    found = list(whole)
    for fused in module.called_computations(fusion):
        root = fused.root
        updated = root.operands[0] if root.opcode in _UPDATES else ""
        for parameter in fused.instructions:
            if parameter.opcode != "parameter":
                continue
            number = int(parameter.arguments)
            if parameter.name == updated:
                place, times = _UPDATES[root.opcode]
                found[number], written = 0, times * _bytes(fused.by_name[root.operands[place]])
            elif cuts := _find_cuts(fused, parameter.name):
                found[number] = min(found[number], sum(map(_bytes, cuts)))
    return found, written


def _find_cuts(fused: Computation, name: str) -> list[Instruction]:
    """Returns what cuts from an array, if nothing else uses it."""
    users = [each for each in fused.instructions if name in each.operands]
    found: list[Instruction] = []
    for user in users:
        if user.opcode == "bitcast":
            inner = _find_cuts(fused, user.name)
        else:
            cuts = (
                user.opcode in _PARTIAL_READ_OPCODES
                and user.operands[0] == name
                and name not in user.operands[1:]
            )
            inner = [user] if cuts else []
        if not inner:
            return []
        found += inner
    return found


def _bytes(instruction: Instruction) -> int:
    """Returns the bytes of a result inside a fusion, in whole tiles."""
    return sum(max(shape.bytes, shape.hbm_bytes) for shape in instruction.shapes)
