"""Stacks: experts of a run laid side by side, so that rows of many of them share batches.

Experts of one kind and shape stand in one stack, of any number of kinds and shapes. A full expert takes the
base's place and stands alone; so does a gate, which weighs a whole library token by token.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from elm_jax.experts.cache import NEUTRAL, Shelf
from elm_jax.experts.files import Description
from elm_jax.experts.library import Library
from elm_jax.experts.lookup import BASE, homes
from elm_jax.models import experts as ex
from elm_jax.models import sharding
from elm_jax.records import Params
from elm_jax.routing import gates
from elm_jax.routing.gates import Gated
from elm_jax.session import devices
from elm_jax.session.workspace import Run

MAX_STACKED_EXPERTS = 64
"""Experts of a stack, at most."""
MAX_MEMORY_SHARE = 0.25
"""Of a device's memory that a stack takes at most; the base and what it computes lie beside it."""


@dataclass(frozen=True)
class ExpertStack:
    """What is at hand together, and what the network takes for it; experts are good until the next stack."""

    places: Mapping[str, int]  # where every scorer stands in the stack
    params: Params  # the base's, or those of the full expert in its stead
    experts: Params | None = None  # [E, L, …], or one tree for all rows
    stacked: bool = True


def load_stacks(
    run: Run, scorers: Iterable[str], at_once: int, gated: Mapping[str, Gated] | None = None
) -> Iterator[ExpertStack]:
    """Yields every scorer once: experts of the run by id, `BASE`, and gates by name.

    At most `at_once` experts are held together, and no more than `SHARE` of a device's memory has room for,
    but one. They are written over those of the stack before, on the device, so that every stack of a shape is
    of one size and another one compiles nothing. The base takes part, where it can, as the expert that
    changes nothing, which every stack has.
    """
    gated = gated or {}
    wanted = list(dict.fromkeys(scorers))
    home_of = homes(run.workspace)
    alike: dict[Any, dict[str, Description]] = {}
    for name in wanted:
        if name != BASE and name not in gated:
            description = home_of(name).describe(name)
            alike.setdefault(_shape(description), {})[name] = description
    alone = BASE in wanted
    for (kind, _), members in alike.items():
        if kind == "full":
            for name in members:
                owned = home_of(name).expert(name, base=run.base.fingerprint).params
                yield ExpertStack({name: 0}, *ex.place(kind, run.base.params, owned))
            continue
        shelf = _shelf(run, members, home_of, at_once)
        for chunk, params, places in shelf.chunks(list(members)):
            there = {name: int(place) for name, place in zip(chunk, places, strict=True)}
            yield ExpertStack({BASE: NEUTRAL, **there} if alone else there, run.base.params, params)
            alone = False
    if alone:
        yield ExpertStack({BASE: 0}, run.base.params)
    for name in wanted:
        if name in gated:
            yield ExpertStack({name: 0}, run.base.params, gates.tree(run, gated[name]), stacked=False)


def _shape(description: Description) -> tuple[str, Any]:
    kind, shapes = description.spec.kind, description.shapes
    return kind, () if kind == "full" else tuple(sorted(shapes.items()))


def _shelf(
    run: Run, members: Mapping[str, Description], home_of: Callable[[str], Library], at_once: int
) -> Shelf:
    """Returns an empty shelf for experts of one shape: every one of them is wanted once, so none is kept."""
    first = next(iter(members.values()))
    dtype = np.result_type(
        *{np.dtype(own) for description in members.values() for own in description.dtypes.values()}
    )
    one = sum(int(np.prod(shape)) for shape in first.shapes.values()) * dtype.itemsize
    places = max(1, min(at_once, len(members), int(MAX_MEMORY_SHARE * devices.memory()) // one - 1))
    # The composites last, where both have one of that id, as in `homes`.
    libraries = set(map(home_of, members))
    return Shelf(
        sorted(libraries, key=lambda library: library.root == run.workspace.composites),
        run.base.fingerprint,
        host_bytes=0,
        device_bytes=(places + 1) * one,  # the base's place too
        places=places,
        dtype=dtype,
        neutral=run.base.params,
        mesh=sharding.mesh_of(run.base.params),
    )
