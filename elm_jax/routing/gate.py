"""Gate: what a router that chooses token by token hands to the network, and the LoRA factors it is made of.

The network compares what enters a projection with every expert's prototype there, and lets the `k` most
similar experts share the token (`elm_jax.models.gating.gated` takes the fields as they are). No query is
looked at, so a gate depends on the task only by the experts that must not serve it.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from elm_jax.axes import Array
from elm_jax.errors import UserError
from elm_jax.records import Params
from elm_jax.routing import evidence
from elm_jax.routing.evidence import Index

Factors = tuple[Float[np.ndarray, "E L I R"], Float[np.ndarray, "E L R O"]]


@dataclass(frozen=True)
class Gate:
    """How tokens weigh E stacked LoRA experts, at every projection P of every layer."""

    task: str
    router: str
    experts: tuple[str, ...]  # in the order of the stack
    prototypes: Mapping[str, Float[Array, "E L I K"]]  # by P, divided by the softmax's temperature
    allowed: Bool[np.ndarray, " E"]  # False for experts that must not serve the task
    k: int  # experts that share a token
    similarity: Literal["norm", "cosine"]  # |x prototypes|, or K = 1 and x taken with length 1


def gate(
    router: str,
    task: str,
    index: Index,
    prototypes: Mapping[str, Float[np.ndarray, "E L I K"]],
    *,
    k: int,
    temperature: float,
    similarity: Literal["norm", "cosine"] = "norm",
    exclude: Collection[str] = (),
) -> Gate:
    """Returns the gate; a UserError if prototypes are not one an expert, or an option makes no sense."""
    if k < 1 or not temperature > 0:
        raise UserError(
            f"At least one expert a token and a temperature above 0 are wanted, but {k} and {temperature} "
            "came."
        )
    for path, prototype in prototypes.items():
        if len(prototype) != len(index.experts):
            raise UserError(
                f"The stack should hold the index's {len(index.experts)} experts in their order, but "
                f"{path!r} has {len(prototype)}."
            )
    scaled = {path: value / np.float32(temperature) for path, value in prototypes.items()}
    return Gate(task, router, index.experts, scaled, evidence.candidates(index, exclude), k, similarity)


def factors(params: Params) -> dict[str, Factors]:
    """Returns P -> (lora_a, lora_b) of stacked LoRA experts, as they are stored.

    Raises a UserError if the experts own anything else.
    """
    found: dict[str, dict[str, np.ndarray]] = {}

    def visit(node: Params, path: str) -> None:
        for name, value in node.items():
            if isinstance(value, Mapping):
                visit(value, f"{path}/{name}" if path else name)
            else:
                found.setdefault(path, {})[name] = np.asarray(value)

    visit(params, "")
    for path, leaves in sorted(found.items()):
        if set(leaves) != {"lora_a", "lora_b"}:
            raise UserError(
                f"LoRA experts are wanted, whose projections have lora_a and lora_b, but {path!r} has "
                f"{', '.join(sorted(leaves))}. Train experts with `--kind lora`, or choose another router."
            )
    if not found:
        raise UserError("Stacked LoRA experts are wanted, but an empty tree came.")
    return {path: (leaves["lora_a"], leaves["lora_b"]) for path, leaves in sorted(found.items())}


def spectrum(
    lora_a: Float[np.ndarray, "*stack I R"], lora_b: Float[np.ndarray, "*stack R O"]
) -> tuple[Float[np.ndarray, "*stack I K"], Float[np.ndarray, "*stack K"]]:
    """Returns the singular vectors of ΔW = lora_a lora_b on the side of its inputs, and the singular values.

    The largest comes first; a vector whose value is 0 is 0. ΔW itself, [I, O], is never made: the factors'
    QR decompositions leave a matrix of R x R to decompose.
    """
    before, inner = np.linalg.qr(np.asarray(lora_a, np.float32))
    outer = np.linalg.qr(np.swapaxes(np.asarray(lora_b, np.float32), -1, -2)).R
    left, sizes, _ = np.linalg.svd(inner @ np.swapaxes(outer, -1, -2), full_matrices=False)
    real = sizes > 1e-6 * np.maximum(sizes[..., :1], 1e-30)
    return before @ (left * real[..., None, :]), sizes * real
