"""MBC: model-based clustering of LoRA experts, by what their parameters look like (Ostapenko et al. 2024).

"Towards Modular LLMs by Building and Reusing a Library of LoRAs", arXiv 2405.11157: the flattened parameters
of every expert, with length 1, are grouped by k-means (`cluster_experts`). The paper trains or merges one
expert per cluster; the router `mbc`, ours, lets a task's nearest keys elect a whole cluster.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from elm_jax.errors import UserError
from elm_jax.records import Params, Selection
from elm_jax.routing import vote
from elm_jax.routing.inputs import KeyIndex, Queries, find_allowed_experts
from elm_jax.routing.registry import register_router
from elm_jax.routing.roe import find_neighbours
from elm_jax.routing.token_gate import collect_lora_factors

MOST_ROUNDS = 100


def cluster_experts(
    params: Params, experts: Sequence[str], count: int, *, dimensions: int | None = None
) -> tuple[tuple[str, ...], ...]:
    """Groups LoRA experts by their parameters; the order of the experts makes no difference.

    Args:
        params: The experts stacked, leaves [E, L, …].
        experts: Their ids.
        count: How many groups there are at most.
        dimensions: How many leading principal components distances are measured in; by default distances
            are those of all parameters.

    Returns:
        The groups' ids, in the order of their first expert.

    Raises:
        UserError: If the experts are no LoRA or are not those named, or if `count` is not valid.
    """
    gram = np.zeros((len(experts), len(experts)), np.float64)
    for pair in collect_lora_factors(params).values():
        for leaf in pair:
            if len(leaf) != len(experts):
                raise UserError(f"Expected a stack of {len(experts)} experts, got one of {len(leaf)}.")
            flat = np.asarray(leaf, np.float32).reshape(len(leaf), -1)
            gram += flat @ flat.T
    if not 1 <= count <= len(experts):
        raise UserError(f"Expected from 1 to {len(experts)} clusters, got {count}.")
    length = np.sqrt(np.maximum(np.diagonal(gram), 1e-30))
    # E vectors span E dimensions at most: inner products are enough, however many parameters there are.
    sizes, vectors = np.linalg.eigh(gram / np.outer(length, length))
    points = (vectors * np.sqrt(np.maximum(sizes, 0.0)))[:, ::-1][:, :dimensions]
    owner = _k_means(points, count)
    groups = {int(group): np.flatnonzero(owner == group) for group in dict.fromkeys(owner)}
    return tuple(tuple(experts[int(expert)] for expert in group) for group in groups.values())


@register_router("mbc", reads=("vectors", "params"))
def mbc(
    queries: Queries,
    index: KeyIndex,
    *,
    params: Params,
    groups: int = 10,
    k: int = 1,
    exclude: Collection[str] = (),
) -> Selection:
    """The cluster of LoRA experts whose keys are nearest to most queries, with equal weights.

    Args:
        queries: The queries.
        index: The keys.
        params: The index's experts stacked, leaves [E, L, …].
        groups: How many clusters are made of the index's experts; one each if there are fewer.
        k: How many keys of each query vote.
        exclude: Datasets; experts that were trained on one of them neither vote nor are chosen.

    Returns:
        The selection; its `votes` are those of single experts.

    Raises:
        UserError: If queries and index do not compare, or the experts are no LoRA.
    """
    clusters = _clusters(params, index, min(groups, len(index.experts)))
    similarities, rows = find_neighbours(queries, index, k, exclude=exclude)
    voters = np.where(rows >= 0, index.expert_of_row[rows], -1)
    group_of = {expert: number for number, group in enumerate(clusters) for expert in group}
    group_of_expert = np.array([group_of[expert] for expert in index.experts])
    winner = vote.rank_experts(
        np.where(voters >= 0, group_of_expert[voters], -1), similarities, len(clusters)
    )[0][0]
    allowed = dict(zip(index.experts, find_allowed_experts(index, exclude), strict=True))
    members = [expert for expert in clusters[winner] if allowed[expert]]
    elected = vote.elect_experts("mbc", queries, index, voters, similarities)
    return replace(elected, weights=dict.fromkeys(members, 1.0 / len(members)))


def _clusters(params: Params, index: KeyIndex, count: int) -> tuple[tuple[str, ...], ...]:
    """Returns `cluster_experts` of an index's experts, computed once for the same parameters."""
    made: dict[int, tuple[Params, tuple[tuple[str, ...], ...]]] = index.once("mbc", dict)
    if count not in made or made[count][0] is not params:
        made[count] = (params, cluster_experts(params, index.experts, count))
    return made[count][1]


def _k_means(points: Float[np.ndarray, "E D"], count: int) -> Int[np.ndarray, " E"]:
    """Returns the group of every point by Lloyd's algorithm, from centres far apart.

    The first centre is the point farthest from the mean, each next one that farthest from all before
    (Gonzalez 1985), so that nothing is random; a group that loses all its points is dropped.
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
        groups = np.unique(owner)
        centres = np.stack([points[owner == group].mean(axis=0) for group in groups])
        owner = np.searchsorted(groups, owner)
    return owner
