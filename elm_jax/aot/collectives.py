"""Collectives: what the devices of a compiled program send one another.

Blocking ones stand in the text as they are, or inside a fusion (`all-reduce-scatter`). Asynchronous ones come
in three forms: a `-start` and a `-done`; an `async-start` that calls a computation; and on TPUs a fusion with
the custom call `AsyncCollectiveStart`, later fusions that repeat the collective under the same channel while
they compute, and one with `AsyncCollectiveDone`. Between TPU slices they are a `send` to the host.
"""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from elm_jax.aot.hlo import ArrayShape, Computation, Instruction, Module

COLLECTIVE_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_OPCODES = {f"{kind}{form}": kind for kind in COLLECTIVE_KINDS for form in ("", "-start")}
_FUSED_START, _FUSED_PART = "AsyncCollectiveStart", "async_collective_fusion_config"
Groups = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Collective:
    """Collectives of one kind in a program, of one device and one call.

    Attributes:
        kind: one of `COLLECTIVE_KINDS`.
        dtype: of the elements that are sent, such as "bf16".
        axes: the axes of the mesh along which the devices of a group stand apart; () between slices.
        group_size: the number of devices that take part together; 0 between slices.
        hidden: whether it is asynchronous, so that the program may compute meanwhile.
        between_slices: whether it goes over the data-centre network.
        count: how often one call of the program runs them.
        bytes: of the whole array on one device, gathered or before it is scattered, summed over `count`.
        sent_bytes: what one device sends in a ring, summed over `count`; between slices the same as `bytes`.
    """

    kind: str
    dtype: str
    axes: tuple[str, ...]
    group_size: int
    hidden: bool
    between_slices: bool
    count: int
    bytes: int
    sent_bytes: float

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Collective":
        """Returns the record of a JSON object with these fields."""
        fields = dict(value)
        fields["axes"] = tuple(value["axes"])
        return Collective(**fields)


def find_fused_channels(module: Module) -> frozenset[str]:
    """Returns the channels of the collectives that a fusion starts, which later fusions name again."""
    return frozenset(
        _channel(instruction)
        for computation in module.computations.values()
        if any(each.target == _FUSED_START for each in computation.instructions)
        for instruction in computation.instructions
        if instruction.opcode in COLLECTIVE_KINDS
    )


def find_collectives(
    module: Module,
    computation: Computation,
    instruction: Instruction,
    mesh: Mapping[str, int],
    started: Collection[str] = (),
) -> Iterator[Collective]:
    """Yields the collectives of one run of an instruction, its own or those inside a fusion.

    Args:
        module: the program.
        computation: the computation that the instruction stands in.
        instruction: the instruction.
        mesh: the sizes of the program's mesh by axis.
        started: `fused_channels(module)`.
    """
    if instruction.opcode in _OPCODES:
        yield from _collective(computation, instruction, mesh, hidden=instruction.opcode.endswith("-start"))
    elif instruction.opcode == "send" and "xla_megascale" in instruction.attributes:
        yield from _between_slices(computation, instruction)
    for inside, inner in module.fused(instruction):
        if inner.opcode not in _OPCODES:
            continue
        starts = any(each.target == _FUSED_START for each in inside.instructions)
        if not starts and _FUSED_PART in inner.attributes and _channel(inner) in started:
            continue  # counted where it starts
        hidden = starts or instruction.opcode == "async-start" or _FUSED_PART in inner.attributes
        yield from _collective(inside, inner, mesh, hidden=hidden)


def merge_collectives(found: Iterable[tuple[Collective, int]]) -> tuple[Collective, ...]:
    """Returns one record for all collectives of the same kind, type, axes and form, the largest first.

    Args:
        found: collectives, each with how often one call of the program runs it.
    """
    total: dict[tuple[Any, ...], Collective] = {}
    for each, times in found:
        key = (each.kind, each.dtype, each.axes, each.group_size, each.hidden, each.between_slices)
        before = total.get(key)
        total[key] = replace(
            each,
            count=each.count * times + (before.count if before else 0),
            bytes=each.bytes * times + (before.bytes if before else 0),
            sent_bytes=each.sent_bytes * times + (before.sent_bytes if before else 0.0),
        )
    return tuple(sorted(total.values(), key=lambda each: -each.bytes))


def replica_groups(attributes: str, devices: int) -> Groups:
    """Returns the devices of each group of a collective, by their places in the mesh.

    >>> replica_groups("replica_groups=[4,2]<=[2,4]T(1,0), x", 8)[1]
    [1, 5]
    >>> replica_groups("replica_groups=mesh['a'=2,'b'=4] {'a'}, x", 8)[1]
    [1, 5]
    """
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", attributes):
        return [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", listed[1])]
    if counted := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        ids: Any = np.arange(devices).reshape(_numbers(counted[2]))
        ids = ids.transpose(_numbers(counted[3])) if counted[3] else ids
        return ids.reshape(_numbers(counted[1])).tolist()
    if named := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", attributes):
        return _mesh_groups(named[1], named[2])
    return [list(range(devices))]


def _mesh_groups(mesh: str, together: str) -> Groups:
    """Reads groups such as `'a'=4,'b'=8` and `'b':(2)4`: an axis, or its part of size 4 after 2."""
    sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    ids = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
    shape: list[int] = []
    chosen: list[int] = []
    parts = {
        axis: (int(before or 1), int(size or sizes[axis]))
        for axis, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", together)
    }
    for axis, size in sizes.items():
        before, own = parts.get(axis, (size, 1))
        chosen += [len(shape) + 1] if axis in parts else []
        shape += [before, own, size // before // own]
    others = [dim for dim in range(len(shape)) if dim not in chosen]
    members = math.prod(shape[dim] for dim in chosen)
    return ids.reshape(shape).transpose([*others, *chosen]).reshape(-1, members).tolist()


def _collective(
    computation: Computation, instruction: Instruction, mesh: Mapping[str, int], *, hidden: bool
) -> Iterator[Collective]:
    kind = _OPCODES[instruction.opcode]
    if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
    groups = replica_groups(instruction.attributes, math.prod(mesh.values()))
    size = len(groups[0])
    if size < 2:
        return
    taken = computation.operand_shapes(instruction)
    own = sum(shape.bytes for shape in taken)
    whole = own * size if kind == "all-gather" else own
    yield Collective(
        kind=kind,
        dtype=_dtype(taken),
        axes=_axes(groups, mesh),
        group_size=size,
        hidden=hidden,
        between_slices=False,
        count=1,
        bytes=whole,
        sent_bytes=_sent(kind, whole, size),
    )


def _between_slices(computation: Computation, instruction: Instruction) -> Iterator[Collective]:
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    sent = computation.by_name[instruction.operands[0]].shapes
    size = sum(shape.bytes for shape in sent)
    name = kind[1].lower().replace("_", "-") if kind else "send"
    yield Collective(name, _dtype(sent), (), 0, True, True, 1, size, float(size))


def _sent(kind: str, whole: int, devices: int) -> float:
    """Returns the bytes that one device sends in a ring.

    >>> _sent("all-reduce", 800, 4), _sent("all-gather", 800, 4), _sent("collective-permute", 800, 2)
    (1200.0, 600.0, 800.0)
    """
    if kind == "collective-permute":
        return float(whole)
    return whole * (devices - 1) / devices * (2 if kind == "all-reduce" else 1)


def _axes(groups: Groups, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the axes of a mesh along which the devices of some group stand apart."""
    apart: set[str] = set()
    for group in groups:
        places = np.unravel_index(np.array(group), tuple(mesh.values()))
        apart |= {axis for axis, place in zip(mesh, places, strict=True) if len(set(place.tolist())) > 1}
    return tuple(axis for axis in mesh if axis in apart)


def _dtype(taken: Sequence[ArrayShape]) -> str:
    return taken[0].dtype if taken else ""


def _channel(instruction: Instruction) -> str:
    found = re.search(r"channel_id=(\d+)", instruction.attributes)
    return found[1] if found else instruction.name


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]
