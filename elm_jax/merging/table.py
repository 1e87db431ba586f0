"""Table of merging methods: every way to make several experts one, by name.

All are called alike, `merge(experts, weights=None, *, id=None, **options) -> Expert`.
"""

from collections.abc import Callable, Mapping

from elm_jax import names
from elm_jax.merging.average import average
from elm_jax.records import Expert

METHODS: Mapping[str, Callable[..., Expert]] = {"average": average}


def find(name: str) -> Callable[..., Expert]:
    """Returns the method of that name, or an error with the nearest names."""
    return METHODS[names.resolve(name, METHODS, kind="merging method", where="the table of methods")]
