"""Stacks: experts of a run laid side by side, so that rows of many of them share batches.

Experts of one kind and shape stand in one stack, of any number of kinds and shapes. A full expert takes the
base's place and stands alone; so does a gate, which weighs a whole library token by token.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from elm_jax.experts.compatibility import group_by_kind_and_shapes
from elm_jax.experts.expert_cache import NEUTRAL_SLOT, ExpertCache
from elm_jax.experts.files import ExpertDescription
from elm_jax.experts.library import Library
from elm_jax.experts.lookup import BASE, library_finder
from elm_jax.models import expert_layers as ex
from elm_jax.models import sharding
from elm_jax.records import Params
from elm_jax.routing import gate_specs
from elm_jax.routing.gate_specs import GateSpec
from elm_jax.session import devices
from elm_jax.session.workspace import Run

AT_ONCE = 64
"""Experts of a stack, at most."""
SHARE = 0.25
"""Of a device's memory that a stack takes at most; the base and what it computes lie beside it."""


@dataclass(frozen=True)
class Stack:
    """What is at hand together, and what the network takes for it; experts are good until the next stack."""

    places: Mapping[str, int]  # where every scorer stands in the stack
    params: Params  # the base's, or those of the full expert in its stead
    experts: Params | None = None  # [E, L, …], or one tree for all rows
    stacked: bool = True


def stacks(
    run: Run, scorers: Iterable[str], at_once: int, gated: Mapping[str, GateSpec] | None = None
) -> Iterator[Stack]:
    """Yields every scorer once: experts of the run by id, `BASE`, and gates by name.

    At most `at_once` experts are held together, and no more than `SHARE` of a device's memory has room for,
    but one. They are written over those of the stack before, on the device, so that every stack of a shape is
    of one size and another one compiles nothing. The base takes part, where it can, as the expert that
    changes nothing, which every stack has.
    """
    gated = gated or {}
    wanted = list(dict.fromkeys(scorers))
    home_of = library_finder(run.workspace)
    described = [
        (name, home_of(name).describe(name)) for name in wanted if name != BASE and name not in gated
    ]
    alone = BASE in wanted
    for group in group_by_kind_and_shapes(described, lambda named: (named[1].spec, named[1].shapes)):
        members = dict(group)
        if group[0][1].spec.kind == "full":
            for name in members:
                owned = home_of(name).load_expert(name, base=run.base.fingerprint).params
                yield Stack({name: 0}, *ex.split_base_and_expert("full", run.base.params, owned))
            continue
        cache = _expert_cache(run, members, home_of, at_once)
        for chunk, params, places in cache.load_chunks(list(members)):
            there = {name: int(place) for name, place in zip(chunk, places, strict=True)}
            yield Stack({BASE: NEUTRAL_SLOT, **there} if alone else there, run.base.params, params)
            alone = False
    if alone:
        yield Stack({BASE: 0}, run.base.params)
    for name in wanted:
        if name in gated:
            yield Stack({name: 0}, run.base.params, gate_specs.load_gate(run, gated[name]), stacked=False)


def _expert_cache(
    run: Run, members: Mapping[str, ExpertDescription], home_of: Callable[[str], Library], at_once: int
) -> ExpertCache:
    """Returns an empty cache for experts of one shape; each is used once, so the host keeps none."""
    first = next(iter(members.values()))
    dtype = np.result_type(
        *{np.dtype(own) for description in members.values() for own in description.dtypes.values()}
    )
    one = sum(int(np.prod(shape)) for shape in first.shapes.values()) * dtype.itemsize
    places = max(1, min(at_once, len(members), int(SHARE * devices.device_memory()) // one - 1))
    # The composites last, as in `find_library`: the library of trained experts comes first.
    libraries = set(map(home_of, members))
    return ExpertCache(
        sorted(libraries, key=lambda library: library.root == run.workspace.composites),
        run.base.fingerprint,
        host_bytes=0,
        device_bytes=(places + 1) * one,  # the base's place too
        slots=places,
        dtype=dtype,
        neutral=run.base.params,
        mesh=sharding.mesh_of(run.base.params),
    )
