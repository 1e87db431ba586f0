"""MBC: model-based clustering of LoRA experts, by what their parameters look like (Ostapenko et al. 2024).

"Towards Modular LLMs by Building and Reusing a Library of LoRAs", arXiv 2405.11157: the flattened parameters
of every expert, with length 1, are grouped by k-means. `clusters` are what one then trains or merges one
expert each for, as the paper does; the router `mbc`, ours, lets a task's nearest keys elect a whole cluster.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from elm_jax.errors import UserError
from elm_jax.records import Params, Selection
from elm_jax.routing import evidence, vote
from elm_jax.routing.evidence import Index, Queries
from elm_jax.routing.gate import factors
from elm_jax.routing.roe import neighbours

MOST_ROUNDS = 100


def clusters(
    params: Params, experts: Sequence[str], count: int, *, dimensions: int | None = None
) -> tuple[tuple[str, ...], ...]:
    """Returns at most `count` groups of stacked LoRA experts, leaves [E, L, …], whatever their order.

    Distances are those of all parameters, or with `dimensions` of their leading principal ones. Groups are in
    the order of their first expert.

    Raises a UserError if the experts are no LoRA or are not those named, or if `count` makes no sense.
    """
    gram = np.zeros((len(experts), len(experts)), np.float64)
    for pair in factors(params).values():
        for leaf in pair:
            if len(leaf) != len(experts):
                raise UserError(f"A stack of {len(experts)} experts is wanted, but one of {len(leaf)} came.")
            flat = np.asarray(leaf, np.float32).reshape(len(leaf), -1)
            gram += flat @ flat.T
    if not 1 <= count <= len(experts):
        raise UserError(f"Between 1 and {len(experts)} clusters are wanted, but {count} came.")
    length = np.sqrt(np.maximum(np.diagonal(gram), 1e-30))
    # E vectors span E dimensions at most: their inner products tell all, however many parameters there are.
    sizes, vectors = np.linalg.eigh(gram / np.outer(length, length))
    points = (vectors * np.sqrt(np.maximum(sizes, 0.0)))[:, ::-1][:, :dimensions]
    owner = _k_means(points, count)
    groups = {int(group): np.flatnonzero(owner == group) for group in dict.fromkeys(owner)}
    return tuple(tuple(experts[int(expert)] for expert in group) for group in groups.values())


def mbc(
    queries: Queries,
    index: Index,
    *,
    params: Params,
    groups: int = 10,
    k: int = 1,
    exclude: Collection[str] = (),
) -> Selection:
    """Returns the cluster whose keys are nearest to most queries, its experts weighing alike.

    Experts trained on a dataset in `exclude` neither vote nor are chosen; `votes` are the experts' own.
    `groups` is how many clusters to make of the index's experts, all of them where there are fewer.

    Raises a UserError if queries and index do not compare, or the experts are no LoRA.
    """
    found = clusters(params, index.experts, min(groups, len(index.experts)))
    similarities, rows = neighbours(queries, index, k, exclude=exclude)
    voters = np.where(rows >= 0, index.expert_of_row[rows], -1)
    group_of = {expert: number for number, group in enumerate(found) for expert in group}
    group_of_expert = np.array([group_of[expert] for expert in index.experts])
    winner = vote.rank(np.where(voters >= 0, group_of_expert[voters], -1), similarities, len(found))[0][0]
    may = dict(zip(index.experts, evidence.candidates(index, exclude), strict=True))
    members = [expert for expert in found[winner] if may[expert]]
    elected = vote.elect("mbc", queries, index, voters, similarities)
    return replace(elected, weights=dict.fromkeys(members, 1.0 / len(members)))


def _k_means(points: Float[np.ndarray, "E D"], count: int) -> Int[np.ndarray, " E"]:
    """Returns the group of every point by Lloyd's rounds, from centres far apart.

    The first centre is the point farthest from the mean, the next ones those farthest from all before
    (Gonzalez 1985), so that nothing is drawn; a group that loses all its points is given up.
    """
    apart = np.square(points - points.mean(axis=0, keepdims=True)).sum(axis=1)
    chosen: list[int] = []
    for _ in range(count):
        chosen.append(int(apart.argmax()))
        own = np.square(points - points[chosen[-1]][None]).sum(axis=1)
        apart = own if len(chosen) == 1 else np.minimum(apart, own)
    centres, owner = points[chosen], np.full(len(points), -1)
    for _ in range(MOST_ROUNDS):
        distances = np.square(points[:, None] - centres[None]).sum(axis=2)
        before, owner = owner, distances.argmin(axis=1)
        if (before == owner).all():
            break
        kept = np.unique(owner)
        centres = np.stack([points[owner == group].mean(axis=0) for group in kept])
        owner = np.searchsorted(kept, owner)
    return owner
