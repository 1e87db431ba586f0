"""DARE: changes dropped at random and the rest enlarged, before they are merged (Yu et al., 2311.03099).

Section 3.2: every value of ΔW is kept with probability `density` (the paper's 1 - p) and divided by it, so
that its expectation stays. What is left is averaged, or goes through TIES' election of signs (`then`). The
paper drops nine in ten of networks of billions and fewer of small ones; half is the default here.

What is dropped of an expert depends on the seed, its id and the tensor alone, neither on the experts beside
it nor on their order. Where all experts are one and the same nothing interferes, and it comes back whole.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from elm_jax.merging import changes as changed
from elm_jax.merging.method import Method, Option
from elm_jax.merging.parts import Piece, Tensor, mean
from elm_jax.merging.ties import SHARE, elect


def drop(change: Float[np.ndarray, "*shape"], density: float, kept: Bool[np.ndarray, "*shape"]) -> Tensor:
    """Returns the change without the values that are not kept, the others divided by the share that is."""
    return np.where(kept, change / np.float32(density), np.float32(0))


def draw(
    shape: tuple[int, ...], density: float, seed: int, owner: str, path: str, layer: int | None
) -> Bool[np.ndarray, "..."]:
    """Returns which values of one expert's tensor are kept, True for about that share of them."""
    words = hashlib.sha256(f"{owner}\n{path}\n{layer}".encode()).digest()
    random = np.random.default_rng([seed, *np.frombuffer(words, "<u4").tolist()])
    return random.random(shape, np.float32) < density


def _combine(
    changes: Sequence[np.ndarray], piece: Piece, *, density: float, seed: int, then: str, scale: float
) -> Tensor:
    left = (
        drop(change, density, draw(change.shape, density, seed, owner, piece.part.path, piece.layer))
        for change, owner in zip(changes, piece.owners, strict=True)
    )
    merged = elect(left, piece.weights) if then == "ties" else mean(left, piece.weights)
    return np.float32(scale) * merged


METHOD = Method(
    says="changes dropped at random and the rest enlarged, then averaged or merged as TIES does",
    on="changes",
    combine=_combine,
    options={
        **changed.OPTIONS,
        "density": Option(float, 0.5, "share of values kept", SHARE, lambda value: 0 < value <= 1),
        "seed": Option(
            int, 0, "of what is dropped", "A whole number of at least 0", lambda value: value >= 0
        ),
        "then": Option(
            str,
            "average",
            "what follows: average, or ties' election of signs",
            "'average' or 'ties'",
            lambda value: value in ("average", "ties"),
        ),
        "scale": changed.SCALE,
    },
    factor=lambda weights, options: options["scale"],
    needs_base=True,
    refusal=changed.refusal,
    notes=changed.NOTES,
)
