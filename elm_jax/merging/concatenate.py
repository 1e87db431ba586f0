"""Concatenate: experts side by side in one wider expert, the exact average of what each of them gives.

Of bottlenecks, x + Σ w up(gelu(down x)) is one bottleneck of the summed width: the down-projections and their
biases stand side by side, the up-projections, times their weights, below one another, and the up-biases are
averaged. Of LoRA the factors stand likewise, so that lora_a lora_b is the exact average of ΔW, of the summed
rank (the "cat" of `peft`). Norm scales, which multiply, are averaged, which too is exact for each norm.

What is exact is each block's map of the same input. Behind several blocks the inputs are no longer the same
as in the experts run apart, so the whole network's outputs are not the average of theirs.
"""

from collections.abc import Sequence

import numpy as np

from elm_jax.merging.average import average
from elm_jax.merging.method import Method, Options
from elm_jax.merging.parts import Part, Piece, mean

ADAPTER = ("down/bias", "down/kernel", "up/bias", "up/kernel")


def concatenate(piece: Piece) -> list[np.ndarray]:
    """Returns the leaves of the wider expert, in float32; a form that cannot be widened is averaged."""
    if piece.part.form == "lora":
        first, second = zip(*piece.values, strict=True)
        return [_beside(first), _below(second, piece.weights)]
    if piece.part.form != "adapter":
        return average(piece)
    down_bias, down, up_bias, up = zip(*piece.values, strict=True)
    return [_beside(down_bias), _beside(down), mean(up_bias, piece.weights), _below(up, piece.weights)]


def refusal(parts: Sequence[Part], options: Options) -> str | None:
    """Returns why experts cannot be concatenated, None if they can."""
    del options
    if not any(part.form in ("adapter", "lora") for part in parts):
        return (
            "it puts bottlenecks or LoRA factors side by side, and what these experts own acts linearly, so "
            "that its average already is the exact average of what every block gives"
        )
    for part in parts:
        wanted = tuple(f"{part.path}/{leaf}" for leaf in ADAPTER)
        if part.form == "adapter" and part.leaves != wanted:
            return f"it wants {', '.join(ADAPTER)} of every adapter, and {part.path} is not so"
    return None


def _beside(values: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.asarray(value, np.float32) for value in values], axis=-1)


def _below(values: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    shares = np.asarray(weights, np.float32)
    return np.concatenate(
        [np.asarray(value, np.float32) * share for value, share in zip(values, shares, strict=True)]
    )


METHOD = Method(
    says="experts side by side in a wider one: the exact average of what each block gives",
    on="parameters",
    combine=concatenate,
    refusal=refusal,
    notes={
        "adapter": "Adapters stand side by side: the exact average of what each block gives.",
        "lora": "Factors stand side by side: their product is the exact average of ΔW.",
        "value": "Norm scales were averaged.",
    },
)
