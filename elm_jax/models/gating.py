"""Gating: every token weighs the stacked LoRA experts for itself, at every projection of every layer.

A gated tree serves all rows (without `expert_of_row`). Its leaves have the axis of layers first, as a scan
over layers needs it. With P the path of a projection of I inputs and O outputs, and E experts of rank R, it
has

    P/lora_a  [L, E, I, R]
    P/lora_b  [L, E, R, O]
    P/gate    a `TokenGate`

and the projection returns `y + sum_e w_e (x lora_a_e) lora_b_e`, where the weights w depend on the token's
x. Routers compute the prototypes (`elm_jax.routing`: Arrow, SpectR, average activation).
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
class TokenGate:
    """How the tokens of one projection weigh E experts; in a tree both arrays have an axis of L layers first.

    Attributes:
        prototypes: [E, I, K], K directions of each expert, divided by the temperature of the softmax.
        allowed: [E], False for an expert that no token may use.
        k: How many experts a token uses; the others have no weight.
        similarity: "norm", the length of `x prototypes`; or, with K = 1, "cosine", the product with x scaled
            to length 1.
    """

    prototypes: Any
    allowed: Any
    k: int
    similarity: Similarity


def make_gated_tree(
    stack: Params,
    prototypes: Mapping[str, Float[Array, "E L I K"]],
    *,
    k: int,
    similarity: Similarity = "norm",
    allowed: Bool[Array, " E"] | None = None,
) -> dict[str, Any]:
    """Returns the gated tree of stacked LoRA experts.

    Other prototypes or `allowed` of the same shapes do not recompile; another `k` does.

    Args:
        stack: LoRA experts, leaves [E, L, …].
        prototypes: Path of a projection -> prototypes.
        k: How many experts a token uses.
        similarity: As in `TokenGate`.
        allowed: Which experts tokens may use; default: all.

    Raises:
        UserError: If the experts are not LoRA, or do not match the prototypes.
    """
    flat = paths.flatten(stack)
    owners = {path.rpartition("/")[0] for path in flat}
    if not flat or {path.rpartition("/")[2] for path in flat} != {"lora_a", "lora_b"}:
        raise UserError(
            "Expected stacked LoRA experts, with lora_a and lora_b, got "
            f"{', '.join(sorted({path.rpartition('/')[2] for path in flat})) or 'nothing'}. Fix: gate "
            "experts that were trained with --kind lora."
        )
    if owners != set(prototypes):
        odd = sorted(owners.symmetric_difference(prototypes))[0]
        raise UserError(
            f"Expected prototypes for exactly the projections of the experts, got a difference in "
            f"{odd!r}. Fix: compute them for these experts."
        )
    if k < 1:
        raise UserError(f"Expected at least 1 expert for each token, got {k}. Fix: raise it.")
    tree: dict[str, Any] = {path: jnp.moveaxis(jnp.asarray(leaf), 0, 1) for path, leaf in flat.items()}
    for path, prototype in prototypes.items():
        expected, actual = flat[f"{path}/lora_a"].shape[:3], prototype.shape
        if actual[:3] != expected or (similarity == "cosine" and actual[3] != 1):
            raise UserError(
                f"Expected prototypes of {path!r} as [experts, layers, inputs, directions], {expected} and "
                f"one direction for cosines, got {actual}. Fix: compute them for these experts."
            )
        mask = jnp.ones(expected[0], bool) if allowed is None else jnp.asarray(allowed)
        tree[f"{path}/gate"] = TokenGate(
            jnp.moveaxis(jnp.asarray(prototype), 0, 1),
            jnp.broadcast_to(mask, (expected[1], expected[0])),
            min(k, expected[0]),
            similarity,
        )
    return paths.unflatten(tree)


def gate_weights(x: Float[Array, "*tokens I"], gate: TokenGate) -> Float[Array, "*tokens E"]:
    """Returns the weights of the experts for every token, a softmax over the `k` most similar ones.

    They sum to 1 and are computed in float32. Experts that tie with the k-th count too, so that the order of
    experts does not matter.

    >>> gate = TokenGate(jnp.eye(3)[..., None], jnp.array([True, True, False]), k=1, similarity="norm")
    >>> gate_weights(jnp.array([[1.0, -2.0, 5.0]]), gate).tolist()
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


def gated_delta(x: Float[Array, "*tokens I"], expert: Params) -> Float[Array, "*tokens O"]:
    """Returns what the gated experts of one projection add to its outputs, in the type of x.

    The lora_a of all experts are multiplied with every token, as one product with E R columns. Few tokens of
    a batch share their k experts, and factors gathered for each token would be far larger than the tokens.
    """
    weights = gate_weights(x, expert["gate"]).astype(x.dtype)
    inner = jnp.einsum("...i,eir->...er", x, expert["lora_a"].astype(x.dtype))
    return jnp.einsum("...er,ero->...o", inner * weights[..., None], expert["lora_b"].astype(x.dtype))
