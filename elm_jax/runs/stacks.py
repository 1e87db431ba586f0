"""Stacks: experts of a run laid side by side, so that rows of many of them share batches.

Experts of one kind and shape stand in one stack, of any number of kinds and shapes. A full expert takes the
base's place and stands alone; so does a gate, which weighs a whole library token by token.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from elm_jax.library.files import Description
from elm_jax.library.store import Library
from elm_jax.models import experts as ex
from elm_jax.models import paths
from elm_jax.records import Params
from elm_jax.runs import gates
from elm_jax.runs.gates import Gated
from elm_jax.runs.workspace import Run, Workspace

BASE = "base"
"""What stands for the base alone where an expert's id is wanted."""


@dataclass(frozen=True)
class Stack:
    """What is at hand together, and what the network takes for it."""

    places: Mapping[str, int]  # where every scorer stands in the stack
    params: Params  # the base's, or those of the full expert in its stead
    experts: Params | None = None  # [E, L, …], or one tree for all rows
    stacked: bool = True


def stacks(
    run: Run, scorers: Iterable[str], at_once: int, gated: Mapping[str, Gated] | None = None
) -> Iterator[Stack]:
    """Yields every scorer once: experts of the run by id, `BASE`, and gates by name.

    At most `at_once` experts are held together. The base takes part, where it can, as the expert that changes
    nothing, and every stack of a shape is filled up to one size, so that another one compiles nothing.
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
                yield Stack({name: 0}, *ex.place(kind, run.base.params, owned))
            continue
        ids = [*members, *([BASE] if alone else ())]
        alone = False
        size = min(at_once, len(ids))
        for at in range(0, len(ids), size):
            chunk = ids[at : at + size]
            places = {name: place for place, name in enumerate(chunk)}
            yield Stack(places, run.base.params, _stacked(run, chunk, size, members, home_of))
    if alone:
        yield Stack({BASE: 0}, run.base.params)
    for name in wanted:
        if name in gated:
            yield Stack({name: 0}, run.base.params, gates.tree(run, gated[name]), stacked=False)


def home(workspace: Workspace, expert: str) -> Library:
    """Returns the library that an expert lies in: the experts', or that of what was made of several tasks."""
    return homes(workspace)(expert)


def homes(workspace: Workspace) -> Callable[[str], Library]:
    """Returns `home` for many experts, of which the directories are listed once."""
    composites = Library.open(workspace.composites, create=True)
    made = set(composites.ids())

    def home_of(expert: str) -> Library:
        return composites if expert in made else Library.open(workspace.library)

    return home_of


def _shape(description: Description) -> tuple[str, Any]:
    kind, shapes = description.spec.kind, description.shapes
    return kind, () if kind == "full" else tuple(sorted(shapes.items()))


def _stacked(
    run: Run,
    chunk: Sequence[str],
    size: int,
    members: Mapping[str, Description],
    home_of: Callable[[str], Library],
) -> dict[str, Any]:
    """Returns the parameters of a chunk as [size, …]; what is left of the size repeats the last of it."""
    first = next(iter(members.values()))
    stack = {
        path: np.empty(
            (size, *shape), np.result_type(*{np.dtype(each.dtypes[path]) for each in members.values()})
        )
        for path, shape in first.shapes.items()
    }
    for number, name in enumerate(chunk):
        if name == BASE:
            # Of shapes alone: what an expert holds, NaN perhaps, is not for the base to have.
            bare = {path: np.zeros(shape, first.dtypes[path]) for path, shape in first.shapes.items()}
            own = ex.neutral(paths.unflatten(bare), run.base.params)
        else:
            own = home_of(name).expert(name, base=run.base.fingerprint).params
        for path, value in paths.flatten(own).items():
            stack[path][number] = value
            stack[path][number + 1 :] = value
    return paths.unflatten(stack)
