"""Average: several experts made into one by the weighted mean of their parameters.

The paper's merge (Jang et al., arXiv 2302.03202): every owned tensor takes part, norm scales included. Of a
bottleneck it averages the two factors, not their product, so the merged expert's effect is near the mean of
the effects but not equal to it.
"""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp

from elm_jax import storage
from elm_jax.axes import Array
from elm_jax.errors import UserError
from elm_jax.merging import agreement
from elm_jax.records import Expert, ExpertSpec


def average(
    experts: Sequence[Expert], weights: Sequence[float] | None = None, *, id: str | None = None
) -> Expert:
    """Returns one expert whose every parameter is the weighted mean of the given experts' parameters.

    `weights` are normalised to sum to 1; without them all count alike. Sums are kept in float32 and cast once
    to the experts' type (the widest, if they differ). The result's id is `id`, or `merged/average-` and a
    fingerprint of what went in; it counts as trained on every dataset that any of the experts was trained on,
    and as many steps as the longest trained of them; its recipe has `method`, `merged_from` and `weights`.

    Raises a UserError, before any arithmetic, if the experts are not of one kind, base and shape, or if the
    weights are not one each, none negative and not all zero.
    """
    agreement.require([(expert.spec, agreement.shapes_of(expert.params)) for expert in experts])
    shares = _shares([expert.spec for expert in experts], weights)

    def mean(*values: Array) -> jax.Array:
        terms = [share * jnp.asarray(value, jnp.float32) for share, value in zip(shares, values, strict=True)]
        return reduce(jnp.add, terms).astype(jnp.result_type(*values))

    params = jax.tree.map(mean, *(expert.params for expert in experts))
    return Expert(_spec([expert.spec for expert in experts], shares, id), params)


def _shares(specs: Sequence[ExpertSpec], weights: Sequence[float] | None) -> list[float]:
    given = [1.0] * len(specs) if weights is None else [float(weight) for weight in weights]
    if len(given) != len(specs):
        raise UserError(f"One weight an expert is wanted, but {len(given)} came for {len(specs)} experts.")
    for spec, weight in zip(specs, given, strict=True):
        if not math.isfinite(weight) or weight < 0.0:
            raise UserError(f"A weight of at least 0 is wanted for {spec.id!r}, but {weight} came.")
    total = math.fsum(given)
    if total == 0.0:
        raise UserError("At least one weight above 0 is wanted, but all of them are 0.")
    return [weight / total for weight in given]


def _spec(specs: Sequence[ExpertSpec], shares: Sequence[float], id: str | None) -> ExpertSpec:
    first = specs[0]
    recipe: dict[str, Any] = {
        "method": "average",
        "merged_from": [spec.id for spec in specs],
        "weights": list(shares),
    }
    return ExpertSpec(
        id=id or f"merged/average-{storage.fingerprint({'base': first.base, **recipe})}",
        kind=first.kind,
        base=first.base,
        paths=first.paths,
        datasets=tuple(sorted({dataset for spec in specs for dataset in spec.datasets})),
        steps=max(spec.steps for spec in specs),
        recipe=recipe,
    )
