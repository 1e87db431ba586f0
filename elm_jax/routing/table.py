"""Table of routers: the built-in ones, each registered by its own file.

All are called alike, `route(queries, index, *, exclude=(), **options) -> Selection`; those that choose token
by token return a `TokenGate`. A router of one's own is registered in the same way:
`registry.register_router`.
"""

from elm_jax import names
from elm_jax.routing import (
    arrow,
    average_activation,
    bm25,
    centroid,
    fixed,
    genknowsub,
    hilora,
    lorahub,
    lorauter,
    mbc,
    oracle,
    phatgoose,
    roe,
    spectr,
    uniform,
)
from elm_jax.routing.registry import ROUTERS, Router, register_router

__all__ = ["ROUTERS", "find_router", "register_router"]

BUILT_IN = (
    arrow,
    average_activation,
    bm25,
    centroid,
    fixed,
    genknowsub,
    hilora,
    lorahub,
    lorauter,
    mbc,
    oracle,
    phatgoose,
    roe,
    spectr,
    uniform,
)
"""The files of the built-in routers; importing one registers it."""


def find_router(name: str) -> Router:
    """Returns the router of that name.

    Raises:
        UserError: If there is none; it names the nearest ones.
    """
    return ROUTERS[names.resolve(name, ROUTERS, kind="router", where="the registry")]
