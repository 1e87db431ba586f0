"""Gating: every token weighs the stacked LoRA experts for itself, at every projection of every layer.

A gated tree serves all rows (without `expert_of_row`). Its leaves have the axis of layers first, as a scan
over layers needs it. With P the path of a projection of I inputs and O outputs, and E experts of rank R, it
has

    P/lora_a  [L, E, I, R]
    P/lora_b  [L, E, R, O]
    P/gate    a `TokenGate`

and the projection returns y plus what the experts add, which is one of two published forms: the sum of their
outputs, `sum_e w_e (x lora_a_e) lora_b_e`, or the product of their mixed factors, `(sum_f w_f x lora_a_f)
(sum_e w_e lora_b_e)`. The weights w depend on the token's x. Routers compute the prototypes
(`elm_jax.routing`: Arrow, SpectR, average activation).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from elm_jax.axes import Array
from elm_jax.errors import UserError
from elm_jax.models import paths, sharding
from elm_jax.records import Params

Similarity = Literal["norm", "standard_dot"]
Weighting = Literal["softmax", "uniform"]
Mixing = Literal["outputs", "factors"]
VARIANCE_FLOOR = 1e-5
DIRECTIONS_PER_PRODUCT = 256
"""With how many directions a token is multiplied together, where an expert has several."""
TOKENS_PER_BLOCK = 16
"""Tokens that are multiplied with one expert of many together."""
DENSE_PRODUCTS_PER_BLOCK = 4
"""How many products of all tokens with all experts cost a CPU as much as one of a block with its expert."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["prototypes", "allowed"],
    meta_fields=["k", "similarity", "weighting", "mixing"],
)
@dataclass(frozen=True)
class TokenGate:
    """How the tokens of one projection weigh E experts; in a tree both arrays have an axis of L layers first.

    Attributes:
        prototypes: [E, I, K], K directions of each expert, divided by the temperature of the softmax.
        allowed: [E], False for an expert that no token may use.
        k: How many experts a token uses; the others have no weight.
        similarity: "norm", the length of `x prototypes`; or, with K = 1, "standard_dot", the product with
            the standardised x.
        weighting: "softmax" of the similarities of the `k` experts, or "uniform", 1 / k for each.
        mixing: what the weights multiply, the experts' "outputs" or both of their "factors".
    """

    prototypes: Any
    allowed: Any
    k: int
    similarity: Similarity
    weighting: Weighting = "softmax"
    mixing: Mixing = "outputs"


def make_gated_tree(
    stack: Params,
    prototypes: Mapping[str, Float[Array, "E L I K"]],
    *,
    k: int,
    similarity: Similarity = "norm",
    weighting: Weighting = "softmax",
    mixing: Mixing = "outputs",
    allowed: Bool[Array, " E"] | None = None,
) -> dict[str, Any]:
    """Returns the gated tree of stacked LoRA experts.

    Other prototypes or `allowed` of the same shapes do not recompile; another `k` does.

    Args:
        stack: LoRA experts, leaves [E, L, …].
        prototypes: Path of a projection -> prototypes.
        k: How many experts a token uses.
        similarity: As in `TokenGate`.
        weighting: Likewise.
        mixing: Likewise.
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
        if actual[:3] != expected or (similarity == "standard_dot" and actual[3] != 1):
            raise UserError(
                f"Expected prototypes of {path!r} as [experts, layers, inputs, directions], {expected} and "
                f"one direction for dot products, got {actual}. Fix: compute them for these experts."
            )
        mask = jnp.ones(expected[0], bool) if allowed is None else jnp.asarray(allowed)
        tree[f"{path}/gate"] = TokenGate(
            jnp.moveaxis(jnp.asarray(prototype), 0, 1),
            jnp.broadcast_to(mask, (expected[1], expected[0])),
            min(k, expected[0]),
            similarity,
            weighting,
            mixing,
        )
    return paths.unflatten(tree)


def standardize(vectors: Float[Array, "*batch I"]) -> Float[Array, "*batch I"]:
    """Returns vectors with mean 0 and variance 1 over their entries, in float32: layer norm without affine.

    >>> standardize(jnp.array([1.0, 3.0])).round(3).tolist()
    [-1.0, 1.0]
    """
    wide = jnp.asarray(vectors, jnp.float32)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + VARIANCE_FLOOR)


def score_experts(x: Float[Array, "*tokens I"], gate: TokenGate) -> Float[Array, "*tokens E"]:
    """Returns how similar every token is to every expert, in float32; -inf for those not allowed."""
    wide = standardize(x) if gate.similarity == "standard_dot" else jnp.asarray(x, jnp.float32)
    prototypes = jnp.asarray(gate.prototypes, jnp.float32)

    def compare(prototypes: Array) -> jax.Array:  # of one expert, or of all
        near = jnp.tensordot(wide, prototypes, (-1, -2), precision="highest")
        return near[..., 0] if gate.similarity == "standard_dot" else jnp.linalg.norm(near, axis=-1)

    experts, _, directions = prototypes.shape
    if directions == 1 or experts * directions <= DIRECTIONS_PER_PRODUCT:
        scores = compare(prototypes)
    else:  # The products with all directions, many times the scores, would stand in memory together.
        together = max(1, DIRECTIONS_PER_PRODUCT // directions)
        scores = jnp.moveaxis(jax.lax.map(compare, prototypes, batch_size=together), 0, -1)
    return jnp.where(jnp.broadcast_to(gate.allowed, scores.shape), scores, -jnp.inf)


def gate_weights(x: Float[Array, "*tokens I"], gate: TokenGate) -> Float[Array, "*tokens E"]:
    """Returns the weights of the experts for every token: of the `k` most similar ones, the others have none.

    They sum to 1 and are computed in float32. Experts that tie with the k-th count too, so that the order of
    experts does not matter.

    >>> gate = TokenGate(jnp.eye(3)[..., None], jnp.array([True, True, False]), k=1, similarity="norm")
    >>> gate_weights(jnp.array([[1.0, -2.0, 5.0]]), gate).tolist()
    [[0.0, 1.0, 0.0]]
    """
    scores = score_experts(x, gate)
    return _weigh(scores, _find_best(scores, gate.k)[0][..., -1:], gate)


def _find_best(
    scores: Float[Array, "*tokens E"], k: int
) -> tuple[Float[Array, "*tokens k"], Int[Array, "*tokens k"]]:
    """Returns the k largest scores of every token, and whose they are.

    XLA's CPU backend has a fast program for just this. Where it merges what comes after into it, it sorts all
    experts instead, which takes forty times as long.
    """
    best, chosen = jax.lax.optimization_barrier(jax.lax.top_k(scores, k))
    return best, chosen


def _weigh(
    scores: Float[Array, "*tokens n"], least: Float[Array, "*tokens 1"], gate: TokenGate
) -> Float[Array, "*tokens n"]:
    """Returns the weights of experts with these scores; those below the least that counts have none."""
    chosen = (scores >= least) & (scores > -jnp.inf)
    even = 0.0 if gate.weighting == "uniform" else scores
    return jax.nn.softmax(jnp.where(chosen, even, -jnp.inf), axis=-1)


def gated_delta(x: Float[Array, "*tokens I"], expert: Params) -> Float[Array, "*tokens O"]:
    """Returns what the gated experts of one projection add to its outputs, in the type of x.

    The lora_a of a few experts are multiplied with every token, as one product with E R columns. Of many
    experts only those that a token uses are, its k pairs sorted by expert into blocks of
    `TOKENS_PER_BLOCK` tokens.
    """
    gate: TokenGate = expert["gate"]
    tokens, experts = math.prod(x.shape[:-1]), gate.prototypes.shape[-3]
    pairs = tokens * gate.k + min(experts, tokens * gate.k) * TOKENS_PER_BLOCK  # at most, padding among them
    if DENSE_PRODUCTS_PER_BLOCK * pairs >= tokens * experts or sharding.is_on_mesh(x):
        return _multiply_all(x, gate_weights(x, gate), expert)
    flat = x.reshape(tokens, -1)
    scores = score_experts(flat, gate)
    best, chosen = _find_best(scores, gate.k)
    # More experts than k share a token where some tie with the k-th, and then all are multiplied.
    is_tied = ((scores >= best[:, -1:]).sum(axis=-1) > gate.k) & (best[:, -1] > -jnp.inf)
    delta = jax.lax.cond(
        is_tied.any(),
        lambda: _multiply_all(flat, _weigh(scores, best[:, -1:], gate), expert),
        lambda: _multiply_chosen(flat, _weigh(best, best[:, -1:], gate), chosen, expert),
    )
    return delta.reshape(*x.shape[:-1], -1)


def _multiply_all(
    x: Float[Array, "*tokens I"], weights: Float[Array, "*tokens E"], expert: Params
) -> Float[Array, "*tokens O"]:
    """Returns what is added, by products of every token with every expert."""
    weights = weights.astype(x.dtype)[..., None]
    inner = weights * jnp.einsum("...i,eir->...er", x, expert["lora_a"].astype(x.dtype))
    if expert["gate"].mixing == "factors":
        inner = weights * inner.sum(axis=-2, keepdims=True)
    return jnp.einsum("...er,ero->...o", inner, expert["lora_b"].astype(x.dtype))


def _multiply_chosen(
    x: Float[Array, "T I"], weights: Float[Array, "T k"], chosen: Int[Array, "T k"], expert: Params
) -> Float[Array, "T O"]:
    """Returns what is added, by products of every token with the k experts that it uses.

    Pairs of a token and an expert are sorted by expert, and each expert's pairs fill whole blocks, so that
    one batched product of blocks with their experts' factors does it.
    """
    tokens, k = chosen.shape
    experts = expert["lora_a"].shape[0]
    owner = chosen.reshape(-1)
    counts = jnp.bincount(owner, length=experts)
    blocks = -(-counts // TOKENS_PER_BLOCK)
    last_block, last_pair = jnp.cumsum(blocks), jnp.cumsum(counts)
    order = jnp.argsort(owner)
    sorted_owner = owner[order]
    place = jnp.arange(tokens * k) - (last_pair - counts)[sorted_owner]  # among its expert's pairs
    slot = (last_block - blocks)[sorted_owner] * TOKENS_PER_BLOCK + place
    slot_of_pair = jnp.zeros(tokens * k, jnp.int32).at[order].set(slot.astype(jnp.int32))
    count = tokens * k // TOKENS_PER_BLOCK + min(experts, tokens * k)  # blocks, as many as there can be
    token = jnp.zeros(count * TOKENS_PER_BLOCK, jnp.int32).at[slot].set((order // k).astype(jnp.int32))
    share = (
        jnp.zeros(count * TOKENS_PER_BLOCK, x.dtype).at[slot_of_pair].set(weights.reshape(-1).astype(x.dtype))
    )
    owner_of_block = jnp.minimum(jnp.searchsorted(last_block, jnp.arange(count), side="right"), experts - 1)
    lora_a, lora_b = (jnp.asarray(expert[name], x.dtype)[owner_of_block] for name in ("lora_a", "lora_b"))

    def sum_pairs(by_slot: Float[Array, "_ W"]) -> Float[Array, "T W"]:
        # Gathered, since a CPU adds what is scattered row by row.
        return by_slot[slot_of_pair.reshape(tokens, k)].sum(axis=1)

    inner = jnp.einsum("nbi,nir->nbr", x[token].reshape(count, TOKENS_PER_BLOCK, -1), lora_a)
    inner = inner.reshape(count * TOKENS_PER_BLOCK, -1) * share[:, None]
    if expert["gate"].mixing == "factors":
        inner = sum_pairs(inner)[token] * share[:, None]
    outer = jnp.einsum("nbr,nro->nbo", inner.reshape(count, TOKENS_PER_BLOCK, -1), lora_b)
    return sum_pairs(outer.reshape(count * TOKENS_PER_BLOCK, -1))
