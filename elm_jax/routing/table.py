"""Table of routers: every way to choose experts, by name.

All are called alike, `route(queries, index, *, exclude=(), **options) -> Selection`. What a router reads says
what must be at hand before it is called: "vectors" (keys and queries embedded), "texts" (their texts),
"expert" (the option of that name) or "accuracies" (the same; they come from labels of the task).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from elm_jax import names
from elm_jax.records import Selection
from elm_jax.routing.bm25 import bm25
from elm_jax.routing.centroid import centroid
from elm_jax.routing.fixed import fixed
from elm_jax.routing.oracle import oracle
from elm_jax.routing.roe import roe, roe_per_instance
from elm_jax.routing.uniform import uniform


@dataclass(frozen=True)
class Router:
    """A way to choose experts, and what it needs to know."""

    route: Callable[..., Selection]
    level: Literal["task", "row"]  # one choice for the task, or one a query: the selection's `nearest`
    reads: tuple[Literal["vectors", "texts", "expert", "accuracies"], ...] = ()


ROUTERS: Mapping[str, Router] = {
    "roe": Router(roe, "task", ("vectors",)),
    "roe_per_instance": Router(roe_per_instance, "row", ("vectors",)),
    "centroid": Router(centroid, "task", ("vectors",)),
    "bm25": Router(bm25, "task", ("texts",)),
    "uniform": Router(uniform, "task"),
    "fixed": Router(fixed, "task", ("expert",)),
    "oracle": Router(oracle, "task", ("accuracies",)),
}


def find(name: str) -> Router:
    """Returns the router of that name, or an error with the nearest names."""
    return ROUTERS[names.resolve(name, ROUTERS, kind="router", where="the table of routers")]
