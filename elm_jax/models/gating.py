"""Gating: every token weighs the stacked LoRA experts for itself, at every projection of every layer.

A gated tree is one tree for all rows (no `expert_of_row`), whose leaves have the layers first, so that a scan
over layers cuts it; with P the path of a projection of I inputs and O outputs, and E experts of rank R,

    P/lora_a  [L, E, I, R]
    P/lora_b  [L, E, R, O]
    P/gate    a `Gate`

and the projection gives `y + sum_e w_e (x lora_a_e) lora_b_e`, with w of every token from its own x. Where
the prototypes come from is a router's affair (`elm_jax.routing`: Arrow, SpectR, average activation).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from elm_jax.axes import Array
from elm_jax.errors import UserError
from elm_jax.models import paths
from elm_jax.records import Params

Similarity = Literal["norm", "cosine"]


@partial(
    jax.tree_util.register_dataclass, data_fields=["prototypes", "allowed"], meta_fields=["k", "similarity"]
)
@dataclass(frozen=True)
class Gate:
    """How tokens that reach one projection weigh E experts; in a tree both arrays have L layers before."""

    prototypes: Any  # [E, I, K]: what each expert is known by, divided by the softmax's temperature
    allowed: Any  # [E], False for an expert that no token may use
    k: int  # experts that share a token; the others have no weight
    similarity: Similarity  # the length of x prototypes, or with K = 1 the product with x of length 1


def gated(
    stack: Params,
    prototypes: Mapping[str, Float[Array, "E L I K"]],
    *,
    k: int,
    similarity: Similarity = "norm",
    allowed: Bool[Array, " E"] | None = None,
) -> dict[str, Any]:
    """Returns the gated tree of stacked LoRA experts, leaves [E, L, …], with prototypes by projection path.

    Layers are brought to the front once, here. Other prototypes or `allowed` of the same shapes compile
    nothing anew; another `k` does.

    Raises a UserError if the experts are no LoRA, or do not fit the prototypes.
    """
    flat = paths.flatten(stack)
    owners = {path.rpartition("/")[0] for path in flat}
    if not flat or {path.rpartition("/")[2] for path in flat} != {"lora_a", "lora_b"}:
        raise UserError(
            "Stacked LoRA experts are wanted, for a gate weighs changes of projections, but these own "
            f"{', '.join(sorted({path.rpartition('/')[2] for path in flat})) or 'nothing'}."
        )
    if owners != set(prototypes):
        odd = sorted(owners.symmetric_difference(prototypes))[0]
        raise UserError(
            f"Prototypes are wanted for every projection of the experts, but {odd!r} is on one side only."
        )
    if k < 1:
        raise UserError(f"At least one expert a token is wanted, but {k} came.")
    tree: dict[str, Any] = {path: jnp.moveaxis(jnp.asarray(leaf), 0, 1) for path, leaf in flat.items()}
    for path, prototype in prototypes.items():
        wanted, came = flat[f"{path}/lora_a"].shape[:3], prototype.shape
        if came[:3] != wanted or (similarity == "cosine" and came[3] != 1):
            raise UserError(
                f"Prototypes of {path!r} are wanted as [experts, layers, inputs, directions], {wanted} and "
                f"for cosines one direction, but {came} came."
            )
        may = jnp.ones(wanted[0], bool) if allowed is None else jnp.asarray(allowed)
        tree[f"{path}/gate"] = Gate(
            jnp.moveaxis(jnp.asarray(prototype), 0, 1),
            jnp.broadcast_to(may, (wanted[1], wanted[0])),
            min(k, wanted[0]),
            similarity,
        )
    return paths.unflatten(tree)


def weights(x: Float[Array, "*tokens I"], gate: Gate) -> Float[Array, "*tokens E"]:
    """Returns every token's weights of the experts, which sum to 1: a softmax over the `k` most similar.

    Computed in float32. Experts as similar as the k-th share too, so that their order means nothing.

    >>> gate = Gate(jnp.eye(3)[..., None], jnp.array([True, True, False]), k=1, similarity="norm")
    >>> weights(jnp.array([[1.0, -2.0, 5.0]]), gate).tolist()
    [[0.0, 1.0, 0.0]]
    """
    wide = jnp.asarray(x, jnp.float32)
    if gate.similarity == "cosine":
        wide = wide / jnp.maximum(jnp.linalg.norm(wide, axis=-1, keepdims=True), 1e-12)
    prototypes = jnp.asarray(gate.prototypes, jnp.float32)
    near = jnp.einsum("...i,eik->...ek", wide, prototypes, precision="highest")
    scores = near[..., 0] if gate.similarity == "cosine" else jnp.linalg.norm(near, axis=-1)
    scores = jnp.where(jnp.broadcast_to(gate.allowed, scores.shape), scores, -jnp.inf)
    least = jax.lax.top_k(scores, gate.k)[0][..., -1:]
    return jax.nn.softmax(jnp.where(scores >= least, scores, -jnp.inf), axis=-1)


def change(x: Float[Array, "*tokens I"], expert: Params) -> Float[Array, "*tokens O"]:
    """Returns what the experts of one layer's gated projection add for every token, in the type of x.

    All experts' lora_a act on every token, as one product with E R columns: few tokens of a batch agree on
    their k experts, and factors gathered token by token would be far larger than the tokens.
    """
    share = weights(x, expert["gate"]).astype(x.dtype)
    inner = jnp.einsum("...i,eir->...er", x, expert["lora_a"].astype(x.dtype))
    return jnp.einsum("...er,ero->...o", inner * share[..., None], expert["lora_b"].astype(x.dtype))
