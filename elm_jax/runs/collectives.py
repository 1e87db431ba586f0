"""Collectives: what a compiled program sends between devices, read from the program's own text.

XLA writes for every collective the shape of its result, the devices that take part, and, for the loop that it
stands in, how often that runs. So what `traffic` predicts can be held against what was compiled.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8}
_COLLECTIVE = re.compile(rf"= (\(.*?\)|\S+) ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(r"(?:to_apply|body|condition|calls|branch_computations)=(\{[^}]*\}|[^\s,)]+)")


@dataclass(frozen=True)
class Collective:
    """One collective of a program."""

    kind: str  # one of KINDS
    axes: tuple[str, ...]  # of the mesh, along which its devices are apart
    devices: int  # that take part together
    size: int  # bytes of its result on one device
    times: int  # that it runs in one call of the program
    name: str = ""  # what asked for it

    @property
    def sent(self) -> float:
        """Bytes that a device sends in one call, where devices stand in a ring.

        With n devices and a result of S bytes: S (n - 1) / n of an all-gather and an all-to-all, twice that
        of an all-reduce, S (n - 1) of a reduce-scatter, whose result is a part, and S of a permutation.
        """
        return self.times * sent(self.kind, self.size, self.devices)


def sent(kind: str, size: int, devices: int) -> float:
    """Returns the bytes that a device sends for one collective of `size` bytes in its result.

    >>> sent("all-reduce", 800, 4), sent("all-gather", 800, 4), sent("reduce-scatter", 200, 4)
    (1200.0, 600.0, 600.0)
    """
    if kind == "collective-permute":
        return float(size)
    if kind == "reduce-scatter":
        return float(size * (devices - 1))
    return size * (devices - 1) / devices * (2 if kind == "all-reduce" else 1)


def collectives(text: str, mesh: Mapping[str, int]) -> list[Collective]:
    """Returns the collectives of a compiled program, `compiled.as_text()`, on a mesh of these sizes.

    Those among a single device are left out. A loop that does not say how often it runs is taken to run once.
    """
    bodies, entry = _computations(text)
    times = _times(bodies, entry)
    found = []
    for name, lines in bodies.items():
        for line in lines:
            told = _COLLECTIVE.search(line)
            if told is None or not times.get(name):
                continue
            together = groups(line, math.prod(mesh.values()))
            if together and len(together[0]) > 1:
                asked = re.search(r'op_name="(.*?)"', line)
                found.append(
                    Collective(
                        kind=told[2],
                        axes=_axes(together, mesh),
                        devices=2 if told[2] == "collective-permute" else len(together[0]),
                        size=_size(told[1], started=bool(told[3]) and told[2] == "all-gather"),
                        times=times[name],
                        name=asked[1] if asked else "",
                    )
                )
    return found


def by_axes(found: Sequence[Collective]) -> dict[tuple[str, ...], float]:
    """Returns the bytes that a device sends along each set of axes."""
    total: dict[tuple[str, ...], float] = {}
    for each in found:
        total[each.axes] = total.get(each.axes, 0.0) + each.sent
    return total


def groups(line: str, devices: int) -> list[list[int]]:
    """Returns the devices, by their place in the mesh, of every group of a collective's line.

    >>> groups("a = f32[] all-reduce(b), replica_groups=[4,2]<=[2,4]T(1,0)", 8)[1]
    [1, 5]
    """
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", line):
        return [list(map(int, one.split(","))) for one in re.findall(r"\{([\d,]+)\}", listed[1])]
    if named := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line):
        sizes = {axis: int(size) for axis, size in re.findall(r"('\w+')=(\d+)", named[1])}
        together = named[2].split(",")
        order = [list(sizes).index(axis) for axis in (*(a for a in sizes if a not in together), *together)]
        ids = np.arange(devices).reshape(list(sizes.values())).transpose(order)
        return ids.reshape(-1, math.prod(sizes[axis] for axis in together)).tolist()
    counted = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if counted is None:
        return [list(range(devices))]
    ids: Any = np.arange(devices).reshape(_numbers(counted[2]))
    ids = ids.transpose(_numbers(counted[3])) if counted[3] else ids
    return ids.reshape(_numbers(counted[1])).tolist()


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Returns the lines of every computation by its name, and the name of the one that is called."""
    bodies: dict[str, list[str]] = {}
    entry = here = ""
    for line in text.splitlines():
        if (
            line
            and not line[0].isspace()
            and line.rstrip().endswith("{")
            and not line.startswith("HloModule")
        ):
            here = line.removeprefix("ENTRY ").split()[0].lstrip("%")
            bodies[here] = []
            entry = here if line.startswith("ENTRY ") else entry
        elif here:
            bodies[here].append(line)
    return bodies, entry


def _times(bodies: Mapping[str, Sequence[str]], entry: str) -> dict[str, int]:
    """Returns how often every computation runs in one call of the program."""
    times: dict[str, int] = {}

    def visit(name: str, by: int) -> None:
        times[name] = times.get(name, 0) + by
        for line in bodies.get(name, ()):
            trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            for called in _CALLED.findall(line):
                for one in called.strip("{}").split(","):
                    inner = one.strip().lstrip("%")
                    if inner in bodies:
                        visit(inner, by * (int(trips[1]) if trips else 1))

    visit(entry, 1)
    return times


def _axes(together: Sequence[Sequence[int]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the axes of a mesh along which the devices of a group stand apart."""
    places = np.array(np.unravel_index(np.array(together[0]), tuple(mesh.values())))
    return tuple(axis for axis, own in zip(mesh, places, strict=True) if len(set(own.tolist())) > 1)


def _size(result: str, *, started: bool) -> int:
    """Returns the bytes of a result; an all-gather that is started names what it takes before it."""
    shapes = re.findall(r"(\w+)\[([\d,]*)\]", result)
    sizes = [_WIDTHS.get(kind, 4) * math.prod(_numbers(shape)) for kind, shape in shapes]
    return sum(sizes[len(sizes) // 2 :] if started and len(sizes) > 1 else sizes)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]
