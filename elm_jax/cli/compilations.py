"""Compilations: the programs that XLA makes for a verb, kept so that its next start need not wait."""

import contextlib
import os
from collections.abc import MutableMapping

from elm_jax import cache

OFF = ("off", "no", "false", "0")
LEAST = "0.1"  # seconds: a program that compiles faster is as soon made as read


def keep(environment: MutableMapping[str, str]) -> None:
    """Has JAX, when it is imported with this environment, keep programs on disk and look there first.

    They go to $JAX_COMPILATION_CACHE_DIR, else to `compiled` in elm_jax's cache, which the user alone may
    enter: whoever can write there can have their programs run.
    `ELM_COMPILATION_CACHE=off` keeps none. What JAX is told already stays, and a place that cannot be
    written is done without.
    """
    if environment.get("ELM_COMPILATION_CACHE", "").lower() in OFF:
        return
    environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", LEAST)
    if "JAX_COMPILATION_CACHE_DIR" in environment:
        return
    place = os.path.join(cache.directory(environment), "compiled")
    with contextlib.suppress(OSError):
        os.makedirs(place, mode=0o700, exist_ok=True)
        environment["JAX_COMPILATION_CACHE_DIR"] = place
