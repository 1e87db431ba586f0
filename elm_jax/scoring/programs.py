"""Programs: the arguments that the compiled functions of scoring and decoding have in common."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from elm_jax.aot.program import with_replication, with_shardings
from elm_jax.models import sharding
from elm_jax.models.shapes import shapes_of


def network_arguments(
    base: Any, experts: Any, rows: int, *, stacked: bool, mesh: Mesh | None
) -> tuple[Any, Any, Any]:
    """Returns the shapes of the base, of experts and of the index of every row's expert, with shardings.

    Args:
        base: its parameters or their shapes.
        experts: a stack [E, …], one tree for all rows, or None.
        rows: of a batch, on all devices together.
        stacked: whether every row names its own of the experts.
        mesh: that the base lies on; None is the default device.
    """
    base, experts = shapes_of(base), None if experts is None else shapes_of(experts)
    index = jax.ShapeDtypeStruct((rows,), jnp.int32) if stacked and experts is not None else None
    if mesh is None:
        return base, experts, index
    # One tree for all rows lies whole on every device.
    shardings = sharding.param_shardings(mesh, experts, experts=True) if stacked and experts else None
    experts = with_shardings(experts, shardings) if shardings else with_replication(mesh, experts)
    return with_shardings(base, sharding.param_shardings(mesh, base)), experts, index
