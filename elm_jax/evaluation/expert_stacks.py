"""Expert stacks: experts of a run held side by side, so that rows of many of them share batches.

Experts of one kind and shape stand in one stack, of any number of kinds and shapes. A full expert takes the
base's place and stands alone. So does a gate, which weighs a whole library token by token.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from elm_jax.experts.expert_cache import NEUTRAL_SLOT, ExpertCache
from elm_jax.experts.files import ExpertDescription
from elm_jax.experts.library import Library
from elm_jax.experts.lookup import BASE_SCORER, library_finder
from elm_jax.models import expert_layers as ex
from elm_jax.models import sharding
from elm_jax.records import Params
from elm_jax.routing import gate_specs
from elm_jax.routing.gate_specs import GateSpec
from elm_jax.session import devices
from elm_jax.session.workspace import Run

MAX_STACKED_EXPERTS = 64
"""Experts of a stack."""
MAX_MEMORY_SHARE = 0.25
"""Of a device's memory for a stack; the base and its activations need the rest."""


@dataclass(frozen=True, repr=False)
class ExpertStack:
    """Experts that are held together, good until the next stack is made.

    Attributes:
        slots: scorer -> its place in the stack.
        params: the base's parameters, or those of a full expert in its stead.
        experts: [E, L, …], or one tree for all rows; None if the base scores alone.
        stacked: whether `experts` has the axis E.
    """

    slots: Mapping[str, int]
    params: Params
    experts: Params | None = None
    stacked: bool = True

    def __repr__(self) -> str:
        return f"ExpertStack({', '.join(self.slots)})"


def load_stacks(
    run: Run, scorers: Iterable[str], max_experts: int, gates: Mapping[str, GateSpec] | None = None
) -> Iterator[ExpertStack]:
    """Yields every scorer once, in stacks.

    They are written over those of the stack before, on the device, so that every stack of a shape is of one
    size and another one compiles nothing. The base takes part, where it can, as the expert that changes
    nothing, which every stack has.

    Args:
        run: with the base and the libraries.
        scorers: experts of the run by id, `BASE`, and gates by name.
        max_experts: held together; fewer if `MAX_MEMORY_SHARE` of a device has no room for them, but one.
        gates: the gates among the scorers.
    """
    gates = gates or {}
    names = list(dict.fromkeys(scorers))
    home_of = library_finder(run.workspace)
    by_shape: dict[Any, dict[str, ExpertDescription]] = {}
    for name in names:
        if name != BASE_SCORER and name not in gates:
            description = home_of(name).describe(name)
            by_shape.setdefault(_stacking_key(description), {})[name] = description
    base_is_due = BASE_SCORER in names
    for (kind, _), members in by_shape.items():
        if kind == "full":
            for name in members:
                owned = home_of(name).load_expert(name, base=run.base.fingerprint).params
                yield ExpertStack({name: 0}, *ex.split_base_and_expert(kind, run.base.params, owned))
            continue
        cache = _make_cache(run, members, home_of, max_experts)
        for chunk, params, places in cache.load_chunks(list(members)):
            slots = {name: int(place) for name, place in zip(chunk, places, strict=True)}
            yield ExpertStack(
                {BASE_SCORER: NEUTRAL_SLOT, **slots} if base_is_due else slots, run.base.params, params
            )
            base_is_due = False
    if base_is_due:
        yield ExpertStack({BASE_SCORER: 0}, run.base.params)
    for name in names:
        if name in gates:
            yield ExpertStack(
                {name: 0}, run.base.params, gate_specs.load_gate(run, gates[name]), stacked=False
            )


def _stacking_key(description: ExpertDescription) -> tuple[str, Any]:
    kind, shapes = description.spec.kind, description.shapes
    return kind, () if kind == "full" else tuple(sorted(shapes.items()))


def _make_cache(
    run: Run, members: Mapping[str, ExpertDescription], home_of: Callable[[str], Library], max_experts: int
) -> ExpertCache:
    """Returns an empty cache of experts of one shape, which keeps none on the host: each is used once."""
    first = next(iter(members.values()))
    dtype = np.result_type(
        *{np.dtype(own) for description in members.values() for own in description.dtypes.values()}
    )
    one = sum(int(np.prod(shape)) for shape in first.shapes.values()) * dtype.itemsize
    slots = max(1, min(max_experts, len(members), int(MAX_MEMORY_SHARE * devices.device_memory()) // one - 1))
    # The composites last, where both have one of that id, as in `library_finder`.
    libraries = set(map(home_of, members))
    return ExpertCache(
        sorted(libraries, key=lambda library: library.root == run.workspace.composites),
        run.base.fingerprint,
        host_bytes=0,
        device_bytes=(slots + 1) * one,  # the base's slot too
        slots=slots,
        dtype=dtype,
        kernel_dtype=min(dtype, np.dtype(run.base.config.dtype), key=lambda each: each.itemsize),
        neutral=run.base.params,
        mesh=sharding.mesh_of(run.base.params),
    )
