"""Token gate: what a router that chooses token by token hands to the network, and the LoRA factors behind it.

The network compares what enters a projection with every expert's prototype there, and lets the `k` most
similar experts share the token (`elm_jax.models.gating`). It looks at no query, so a gate depends on the task
only by the experts that must not serve it.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from elm_jax.axes import Array
from elm_jax.errors import UserError
from elm_jax.models import paths
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
        similarity: "norm" is |x prototypes|; "cosine" has K = 1 and takes x with length 1.
    """

    task: str
    router: str
    experts: tuple[str, ...]
    prototypes: Mapping[str, Float[Array, "E L I K"]]
    allowed: Bool[np.ndarray, " E"]
    k: int
    similarity: Literal["norm", "cosine"]


def make_token_gate(
    router: str,
    task: str,
    index: KeyIndex,
    prototypes: Mapping[str, Float[np.ndarray, "E L I K"]],
    *,
    k: int,
    temperature: float,
    similarity: Literal["norm", "cosine"] = "norm",
    exclude: Collection[str] = (),
) -> TokenGate:
    """Returns the gate of a router's prototypes.

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
    return TokenGate(task, router, index.experts, scaled, allowed, k, similarity)


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
) -> tuple[Float[np.ndarray, "*stack I K"], Float[np.ndarray, "*stack K"]]:
    """Returns the singular vectors of ΔW = lora_a lora_b on the side of its inputs, and the singular values.

    The largest comes first; a vector whose value is 0 is 0. ΔW itself, [I, O], is never computed: the QR
    decompositions of the factors leave a matrix of R x R to decompose.
    """
    before, inner = np.linalg.qr(np.asarray(lora_a, np.float32))
    outer = np.linalg.qr(np.swapaxes(np.asarray(lora_b, np.float32), -1, -2)).R
    left, sizes, _ = np.linalg.svd(inner @ np.swapaxes(outer, -1, -2), full_matrices=False)
    is_nonzero = sizes > 1e-6 * np.maximum(sizes[..., :1], 1e-30)
    return before @ (left * is_nonzero[..., None, :]), sizes * is_nonzero
