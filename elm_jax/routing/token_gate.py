"""Token gate: what a router that chooses token by token hands to the network, and the LoRA factors behind it.

The network compares what enters a projection with every expert's prototype there, and lets the `k` most
similar experts share the token (`elm_jax.models.gating`). It looks at no query, so a gate depends on the task
only by the experts that must not serve it.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from elm_jax.axes import Array
from elm_jax.errors import UserError
from elm_jax.models import gating, paths
from elm_jax.models.gating import Mixing, Similarity, Weighting
from elm_jax.records import Params
from elm_jax.routing.inputs import KeyIndex, find_allowed_experts

Factors = tuple[Float[np.ndarray, "E L I R"], Float[np.ndarray, "E L R O"]]


@dataclass(frozen=True)
class TokenGate:
    """How tokens weigh E stacked LoRA experts, at every projection of every layer.

    Attributes:
        task: The task's id.
        router: The router's name.
        experts: The experts' ids, in the order of the stack.
        prototypes: By path of a projection, divided by the softmax's temperature.
        allowed: False for experts that must not serve the task.
        k: How many experts share a token.
        similarity: As in `elm_jax.models.gating.TokenGate`.
        weighting: Likewise.
        mixing: Likewise.
        factors: By path of a projection, lora_a and lora_b that the network uses in the place of the
            experts' own; their products are the same.
    """

    task: str
    router: str
    experts: tuple[str, ...]
    prototypes: Mapping[str, Float[Array, "E L I K"]]
    allowed: Bool[np.ndarray, " E"]
    k: int
    similarity: Similarity = "norm"
    weighting: Weighting = "softmax"
    mixing: Mixing = "outputs"
    factors: Mapping[str, Factors] | None = None

    def make_tree(self, stack: Params) -> Params:
        """Returns the tree that the network runs, of the experts' parameters stacked in the gate's order."""
        replaced = {
            f"{path}/{leaf}": value
            for path, pair in (self.factors or {}).items()
            for leaf, value in zip(("lora_a", "lora_b"), pair, strict=True)
        }
        return gating.make_gated_tree(
            paths.unflatten({**paths.flatten(stack), **replaced}),
            self.prototypes,
            k=self.k,
            similarity=self.similarity,
            weighting=self.weighting,
            mixing=self.mixing,
            allowed=self.allowed,
        )


def make_token_gate(
    router: str,
    task: str,
    index: KeyIndex,
    prototypes: Mapping[str, Float[np.ndarray, "E L I K"]],
    *,
    k: int,
    temperature: float,
    exclude: Collection[str] = (),
) -> TokenGate:
    """Returns the gate of a router's prototypes, with the defaults of `TokenGate`.

    Raises:
        UserError: If there is not one prototype per expert, or an option is not valid.
    """
    if k < 1 or not temperature > 0:
        raise UserError(f"Expected k of at least 1 and a temperature above 0, got {k} and {temperature}.")
    for path, prototype in prototypes.items():
        if len(prototype) != len(index.experts):
            raise UserError(
                f"Expected a stack of the index's {len(index.experts)} experts, in their order, got "
                f"{len(prototype)} at {path!r}."
            )
    scaled = {path: value / np.float32(temperature) for path, value in prototypes.items()}
    allowed = find_allowed_experts(index, exclude)
    return TokenGate(task, router, index.experts, scaled, allowed, k)


def make_standardized_gate(
    router: str,
    task: str,
    index: KeyIndex,
    vectors: Mapping[str, Float[Array, "E L I"]],
    *,
    k: int,
    temperature: float = 1.0,
    exclude: Collection[str] = (),
) -> TokenGate:
    """Returns PHATGOOSE's gate: softmax over the `k` best of n(x) · n(vector_e) / √I / temperature.

    n(v) = (v - mean v) / √(var v + 1e-5) over the I entries of a vector (Muqeeth et al. 2024, arXiv
    2402.05859).

    Raises:
        UserError: As `make_token_gate`, or if a number is not finite.
    """
    prototypes = {}
    for path, values in sorted(vectors.items()):
        own = np.asarray(values, np.float32)
        if not np.isfinite(own).all():
            raise UserError(f"Expected finite vectors at {path!r}, got others. Fix: compute them again.")
        prototypes[path] = np.asarray(gating.standardize(own) / np.sqrt(own.shape[-1]))[..., None]
    gate = make_token_gate(router, task, index, prototypes, k=k, temperature=temperature, exclude=exclude)
    return replace(gate, similarity="standard_dot")


def collect_lora_factors(params: Params) -> dict[str, Factors]:
    """Returns path of a projection -> (lora_a, lora_b) of stacked LoRA experts.

    Raises:
        UserError: If the experts own anything else, or nothing.
    """
    projections: dict[str, dict[str, np.ndarray]] = {}
    for path, value in sorted(paths.flatten(params).items()):
        projection, _, leaf = path.rpartition("/")
        projections.setdefault(projection, {})[leaf] = np.asarray(value)
    for projection, leaves in projections.items():
        if set(leaves) != {"lora_a", "lora_b"}:
            raise UserError(
                f"Expected LoRA experts, with lora_a and lora_b at {projection!r}, got "
                f"{', '.join(sorted(leaves))}. Fix: train experts with `--kind lora`, or choose another "
                "router."
            )
    if not projections:
        raise UserError("Expected stacked LoRA experts, got an empty tree.")
    return {projection: (leaves["lora_a"], leaves["lora_b"]) for projection, leaves in projections.items()}


def decompose_change(
    lora_a: Float[np.ndarray, "*stack I R"], lora_b: Float[np.ndarray, "*stack R O"]
) -> tuple[Float[np.ndarray, "*stack I K"], Float[np.ndarray, "*stack K O"]]:
    """Returns the factors V and S Uᵀ of ΔW = lora_a lora_b = V S Uᵀ: singular vectors, the largest first.

    The columns of V are of length 1, and 0 where the singular value is 0. A decomposition leaves their signs
    open; here the entry of V that is largest without its sign is positive, the first of equals. (Equal
    singular values leave more open, which no rule of signs decides.) ΔW itself, [I, O], is never computed:
    the QR decompositions of the factors leave a matrix of R x R to decompose.
    """
    before, inner = np.linalg.qr(np.asarray(lora_a, np.float32))
    outer = np.linalg.qr(np.swapaxes(np.asarray(lora_b, np.float32), -1, -2)).R
    left, sizes, _ = np.linalg.svd(inner @ np.swapaxes(outer, -1, -2), full_matrices=False)
    is_nonzero = sizes > 1e-6 * np.maximum(sizes[..., :1], 1e-30)
    vectors = before @ (left * is_nonzero[..., None, :])
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=-2)[..., None, :], axis=-2)
    vectors = vectors * np.where(largest < 0, -1, 1).astype(np.float32)
    return vectors, np.swapaxes(vectors, -1, -2) @ np.asarray(lora_a, np.float32) @ lora_b
