"""Shapes: the trees of a base and of its experts as shapes alone, with no array made."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from elm_jax.models import expert_layers as ex
from elm_jax.models import paths
from elm_jax.models.expert_kinds import is_kernel
from elm_jax.models.sizes import T5Config
from elm_jax.models.t5 import init_params


@lru_cache(maxsize=8)
def base_shapes(config: T5Config) -> Any:
    """Returns the shapes of a base's parameters, in the type that its network computes in."""
    made = jax.eval_shape(lambda: init_params(jax.random.key(0), config))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(config.dtype)), made)


def expert_shapes(config: T5Config, kind: str, options: Mapping[str, Any] | None = None) -> Any:
    """Returns the shapes of one fresh expert of a kind beside a base of that network."""
    make = lambda base: ex.init_expert(kind, jax.random.key(0), base, options or {})  # noqa: E731
    return jax.eval_shape(make, base_shapes(config))


def stack_shapes(tree: Any, count: int, *, kernel_dtype: str | None = None) -> Any:
    """Returns the shapes of a stack of `count` trees, [E, …], kernels in another type where one is given."""
    flat = paths.flatten(tree)
    return paths.unflatten(
        {
            path: jax.ShapeDtypeStruct(
                (count, *leaf.shape), kernel_dtype if kernel_dtype and is_kernel(path) else leaf.dtype
            )
            for path, leaf in flat.items()
        }
    )


def shapes_of(tree: Any) -> Any:
    """Returns the shapes of a tree of arrays."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
