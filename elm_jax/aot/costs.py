"""Costs: FLOPs, seconds and collectives of a compiled program, read from its text."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Collective:
    """Collectives of one kind in a program, of one device and one call.

    Attributes:
        kind: "all-gather", "all-reduce", "reduce-scatter", "all-to-all" or "collective-permute".
        dtype: of the elements that are sent, such as "bf16".
        axes: the axes of the mesh along which the devices of a group stand apart.
        group_size: the number of devices that take part together.
        hidden: whether it is asynchronous, so that the program may compute meanwhile.
        between_slices: whether it goes over the data-centre network.
        count: how often one call of the program runs them.
        bytes: of the whole array on one device, gathered or before it is scattered, summed over `count`.
        sent_bytes: what one device sends in a ring, summed over `count`.
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
        return Collective(**{**value, "axes": tuple(value["axes"])})
