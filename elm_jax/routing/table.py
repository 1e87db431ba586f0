"""Table of routers: every way to choose experts, by name.

All are called alike, `route(queries, index, *, exclude=(), **options) -> Selection`; those that choose token
by token return a `Gate`, which the network applies. What a router reads says what must be at hand before it
is called: "vectors" (keys and queries embedded), "texts" (their texts), or an option of that name: "expert",
"params" (the index's experts, stacked), "activations" (means of what enters projections), "accuracies" and
"loss" (both come from labels of the task).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from elm_jax import names
from elm_jax.records import Selection
from elm_jax.routing.arrow import arrow
from elm_jax.routing.average_activation import average_activation
from elm_jax.routing.bm25 import bm25
from elm_jax.routing.centroid import centroid
from elm_jax.routing.fixed import fixed
from elm_jax.routing.gate import Gate
from elm_jax.routing.lorahub import lorahub
from elm_jax.routing.mbc import mbc
from elm_jax.routing.oracle import oracle
from elm_jax.routing.roe import roe, roe_per_instance
from elm_jax.routing.spectr import spectr
from elm_jax.routing.uniform import uniform

Reads = Literal["vectors", "texts", "expert", "params", "activations", "accuracies", "loss"]


@dataclass(frozen=True)
class Router:
    """A way to choose experts, and what it needs to know."""

    route: Callable[..., Selection | Gate]
    level: Literal["task", "row", "token"]  # one choice for the task, one a query (`nearest`), or a gate
    reads: tuple[Reads, ...] = ()
    few_shot: bool = False  # it has seen labelled examples of the task: kept apart in every table


ROUTERS: Mapping[str, Router] = {
    "roe": Router(roe, "task", ("vectors",)),
    "roe_per_instance": Router(roe_per_instance, "row", ("vectors",)),
    "centroid": Router(centroid, "task", ("vectors",)),
    "bm25": Router(bm25, "task", ("texts",)),
    "mbc": Router(mbc, "task", ("vectors", "params")),
    "arrow": Router(arrow, "token", ("params",)),
    "spectr": Router(spectr, "token", ("params",)),
    "average_activation": Router(average_activation, "token", ("activations",)),
    "lorahub": Router(lorahub, "task", ("loss",), few_shot=True),
    "uniform": Router(uniform, "task"),
    "fixed": Router(fixed, "task", ("expert",)),
    "oracle": Router(oracle, "task", ("accuracies",)),
}


def find(name: str) -> Router:
    """Returns the router of that name, or an error with the nearest names."""
    return ROUTERS[names.resolve(name, ROUTERS, kind="router", where="the table of routers")]
