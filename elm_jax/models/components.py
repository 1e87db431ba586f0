"""Rank-one components: of a few LoRA experts every token uses those components that it excites most.

A LoRA of rank R is a sum of R products of a column of lora_a with a row of lora_b, each of which can be used
without the others. A tree of components serves all rows (without `expert_of_row`); as a gated tree
(`elm_jax.models.gating`) it has, with P the path of a projection,

    P/lora_a  [L, E, I, R]
    P/lora_b  [L, E, R, O]
    P/gate    a `ComponentGate`
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from elm_jax.axes import Array
from elm_jax.models import paths
from elm_jax.records import Params


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ComponentGate:
    """How many components a token uses of each expert.

    Attributes:
        counts: [E]; in a tree with an axis of L layers first.
    """

    counts: Any


def make_component_tree(stack: Params, counts: Sequence[int]) -> dict[str, Any]:
    """Returns the tree of components of stacked LoRA experts, leaves [E, L, …]."""
    flat: Mapping[str, Any] = paths.flatten(stack)
    tree: dict[str, Any] = {path: jnp.moveaxis(jnp.asarray(leaf), 0, 1) for path, leaf in flat.items()}
    for path, leaf in list(tree.items()):
        owner = path.rpartition("/")[0]
        tree[f"{owner}/gate"] = ComponentGate(jnp.tile(jnp.asarray(counts, jnp.int32), (len(leaf), 1)))
    return paths.unflatten(tree)


def component_delta(x: Float[Array, "*tokens I"], expert: Params) -> Float[Array, "*tokens O"]:
    """Returns what is added to the outputs of a projection: of each expert the sum of its chosen components.

    A token x chooses those of largest |x a|, a the component's column of lora_a. Components that tie with the
    last chosen one count too, so that their order does not matter.
    """
    inner = jnp.einsum("...i,eir->...er", x, jnp.asarray(expert["lora_a"], x.dtype))
    sizes = jnp.abs(inner)
    counts = jnp.broadcast_to(expert["gate"].counts[:, None], (*sizes.shape[:-1], 1))
    least = jnp.take_along_axis(-jnp.sort(-sizes, axis=-1), jnp.maximum(counts - 1, 0), axis=-1)
    chosen = jnp.where((sizes >= least) & (counts > 0), inner, 0)
    return jnp.einsum("...er,ero->...o", chosen, jnp.asarray(expert["lora_b"], x.dtype))
