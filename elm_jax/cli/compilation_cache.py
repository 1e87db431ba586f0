"""The compilation cache: programs that XLA compiled for a command, kept on disk for its next start."""

import contextlib
import os
from collections.abc import MutableMapping

from elm_jax import cache, switches

MIN_COMPILE_SECONDS = "0.1"  # a program that compiles faster is not worth reading from disk


def enable(environment: MutableMapping[str, str]) -> None:
    """Sets the environment variables by which JAX keeps compiled programs on disk.

    Programs lie in $JAX_COMPILATION_CACHE_DIR; default: `compiled` in elm_jax's cache. Only the user may
    enter that directory: whoever writes there can have their programs run. `ELM_COMPILATION_CACHE=off` keeps
    none. Variables that are set already stay. A directory that cannot be written is no error.

    Args:
        environment: The variables that JAX will see when it is imported.
    """
    if switches.is_off("ELM_COMPILATION_CACHE", environment):
        return
    environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", MIN_COMPILE_SECONDS)
    if "JAX_COMPILATION_CACHE_DIR" in environment:
        return
    directory = os.path.join(cache.directory(environment), "compiled")
    with contextlib.suppress(OSError):
        os.makedirs(directory, mode=0o700, exist_ok=True)
        environment["JAX_COMPILATION_CACHE_DIR"] = directory
