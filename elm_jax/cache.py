"""The cache: the directory of downloaded files and of XLA's compiled programs."""

import os
from collections.abc import Mapping


def directory(environment: Mapping[str, str] = os.environ) -> str:
    """Returns $ELM_JAX_CACHE, else $XDG_CACHE_HOME/elm_jax, else ~/.cache/elm_jax.

    >>> directory({"XDG_CACHE_HOME": "/kept"})
    '/kept/elm_jax'
    """
    usual = environment.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return os.path.expanduser(environment.get("ELM_JAX_CACHE") or os.path.join(usual, "elm_jax"))
