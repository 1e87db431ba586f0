"""Parts: what of an expert is merged at once, and how it acts on the base.

    form     leaves of the part              acts as                             its change ΔW
    value    one, at a path of the base      in place of the base's parameter    value - the base's
    vector   ia3_in or ia3_out               a factor on what passes, 1 for none  vector - 1
    lora     P/lora_a and P/lora_b           a sum onto the kernel of P           lora_a lora_b
    adapter  {block}_adapter/down, …/up      a small network behind a block       none

The layout of the trees is that of `elm_jax.models.expert_layers`. Layers of a stack are merged one by one, as
tensors of their own, which is how papers and other libraries define every method here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from elm_jax.errors import UserError

Form = Literal["value", "vector", "lora", "adapter"]
Tensor = Float[np.ndarray, "..."]


@dataclass(frozen=True)
class Part:
    """What of an expert is merged at once."""

    form: Form
    path: str  # the base's parameter that it changes, P/kernel of LoRA; its own for vectors and adapters
    leaves: tuple[str, ...]  # the paths that make it up, sorted: lora_a before lora_b, down before up
    stacked: bool  # whether its leaves have a leading axis of layers


@dataclass(frozen=True)
class Piece:
    """One layer of a part, of all experts that are merged."""

    part: Part
    layer: int | None  # None where the part is not stacked
    owners: Sequence[str]  # ids of the experts
    weights: Sequence[float]  # one an expert: shares that sum to 1, or as given where the method says so
    values: Sequence[tuple[np.ndarray, ...]]  # one an expert, as stored: the leaves, without the layers' axis
    base: np.ndarray | None = None  # of a value: the base's
    statistics: Sequence[np.ndarray] | None = None  # one an expert, of a method that reads any for this part


def parts_of(paths: Iterable[str]) -> tuple[Part, ...]:
    """Returns the parts that an expert of these parameter paths consists of, sorted by path.

    Raises a UserError if one of LoRA's two factors is there without the other.

    >>> [(part.form, part.path) for part in parts_of(["a/q/lora_b", "a/q/lora_a", "a/norm/scale"])]
    [('value', 'a/norm/scale'), ('lora', 'a/q/kernel')]
    """
    together: dict[tuple[str, Form], list[str]] = {}
    for path in sorted(paths):
        together.setdefault(_home(path), []).append(path)
    for (home, form), leaves in together.items():
        if form == "lora" and len(leaves) != 2:
            raise UserError(
                f"Both lora_a and lora_b are wanted of {home.removesuffix('/kernel')}, but only "
                f"{leaves[0]!r} came. Train or convert the expert anew."
            )
    return tuple(
        Part(form, home, tuple(leaves), "layers" in home.split("/"))
        for (home, form), leaves in sorted(together.items())
    )


def mean(values: Iterable[np.ndarray], shares: Sequence[float]) -> Tensor:
    """Returns the sum of values times shares, in float32, one value at hand at a time."""
    total: np.ndarray | None = None
    for value, share in zip(values, shares, strict=True):
        term = np.asarray(value, np.float32) * np.float32(share)
        total = term if total is None else np.add(total, term, out=np.asarray(total))
    if total is None:
        raise ValueError("no values to take the mean of")
    return np.asarray(total)


def _home(path: str) -> tuple[str, Form]:
    *owner, leaf = path.split("/")
    if leaf in ("lora_a", "lora_b"):
        return "/".join([*owner, "kernel"]), "lora"
    if leaf in ("ia3_in", "ia3_out"):
        return path, "vector"
    for at, name in enumerate(owner, start=1):
        if name.endswith("_adapter"):
            return "/".join(owner[:at]), "adapter"
    return path, "value"
