"""MBC: model-based clustering of LoRA experts, by what their parameters look like (Ostapenko et al. 2024).

"Towards Modular LLMs by Building and Reusing a Library of LoRAs", arXiv 2405.11157, as the authors' code
(microsoft/mttl) computes it: of an expert's parameters the fifth that is largest counts, a truncated
singular value decomposition over experts leaves a few numbers of each (`embed_experts`), and k-means groups
the rows of their cosines (`cluster_experts`). The paper trains one expert per cluster (`cluster_training`);
the router `mbc`, ours, lets a task's nearest keys elect a whole cluster. k-means starts from experts that lie
far apart, not from scikit-learn's draw as theirs, so where clusters are not clear the groups may be others.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from elm_jax.errors import UserError
from elm_jax.records import Params, Selection
from elm_jax.routing import vote
from elm_jax.routing.inputs import KeyIndex, Queries, find_allowed_experts
from elm_jax.routing.registry import register_router
from elm_jax.routing.roe import find_neighbours
from elm_jax.routing.token_gate import collect_lora_factors

DIMENSIONS = 64
SPARSITY = 0.8
MOST_ROUNDS = 100
ENTRIES_PER_CHUNK = 1024  # entries of every expert that are copied at a time


def embed_experts(
    params: Params, *, dimensions: int = DIMENSIONS, sparsity: float = SPARSITY
) -> Float[np.ndarray, "E D"]:
    """Returns a vector of length 1 for every LoRA expert, such that like parameters make like vectors.

    All entries of an expert that are not above its own quantile of absolute values are zero. The vectors are
    the expert's coordinates on the first principal directions (without centring) of what is left. As the
    authors', the decomposition is the randomised one of Halko et al. 2011, exact up to `dimensions` + 10
    experts; beyond, what is drawn goes by the order of experts.

    Args:
        params: The experts stacked, leaves [E, L, …].
        dimensions: How many numbers of each expert are kept at most.
        sparsity: The quantile, or 0 to keep every entry.

    Raises:
        UserError: If the experts are no LoRA.
    """
    leaves = [leaf for pair in collect_lora_factors(params).values() for leaf in pair]
    flat = [np.asarray(leaf, np.float32).reshape(len(leaf), -1) for leaf in leaves]
    cut = np.full((len(leaves[0]), 1), -1, np.float32)
    if sparsity:
        # One expert at a time: a copy of all would stand beside them.
        least = [np.quantile(np.abs(np.concatenate(own)), sparsity) for own in zip(*flat, strict=True)]
        cut = np.array(least, np.float32)[:, None]
    gram = np.zeros((len(leaves[0]), len(leaves[0])), np.float32)
    for leaf in flat:
        for start in range(0, leaf.shape[1], ENTRIES_PER_CHUNK):  # for the same reason
            part = leaf[:, start : start + ENTRIES_PER_CHUNK]
            part = np.where(np.abs(part) > cut, part, np.float32(0))
            gram += part @ part.T
    directions, sizes = _leading_eigenvectors(gram, dimensions)
    coordinates = directions * np.sqrt(np.maximum(sizes, 0.0))
    return coordinates / np.maximum(np.linalg.norm(coordinates, axis=1, keepdims=True), 1e-30)


def cluster_experts(
    points: Float[np.ndarray, "E D"], experts: Sequence[str], count: int
) -> tuple[tuple[str, ...], ...]:
    """Groups experts by k-means over the rows of their matrix of cosines.

    Args:
        points: What `embed_experts` returns.
        experts: Their ids.
        count: How many groups there are at most.

    Returns:
        The groups' ids, in the order of their first expert.

    Raises:
        UserError: If the experts are not those named, or if `count` is not valid.
    """
    if len(points) != len(experts):
        raise UserError(f"Expected points of {len(experts)} experts, got {len(points)}.")
    if not 1 <= count <= len(experts):
        raise UserError(f"Expected from 1 to {len(experts)} clusters, got {count}.")
    # Row i of the cosines is points p_i, and its distances are those of p_i √(pointsᵀ points): D numbers
    # stand for E.
    wide = np.asarray(points, np.float64)
    sizes, vectors = np.linalg.eigh(wide.T @ wide)
    owner = _k_means(wide @ (vectors * np.sqrt(np.maximum(sizes, 0.0))), count)
    groups = {int(group): np.flatnonzero(owner == group) for group in dict.fromkeys(owner)}
    return tuple(tuple(experts[int(expert)] for expert in group) for group in groups.values())


@register_router("mbc", reads=("vectors", "parameter_points"))
def mbc(
    queries: Queries,
    index: KeyIndex,
    *,
    parameter_points: Float[np.ndarray, "E D"],
    groups: int = 10,
    k: int = 1,
    exclude: Collection[str] = (),
) -> Selection:
    """The cluster of LoRA experts whose keys are nearest to most queries, with equal weights.

    Args:
        queries: The queries.
        index: The keys.
        parameter_points: What `embed_experts` returns of the index's experts.
        groups: How many clusters are made of the index's experts; one each if there are fewer.
        k: How many keys of each query vote.
        exclude: Datasets; experts that were trained on one of them neither vote nor are chosen.

    Returns:
        The selection; its `votes` are those of single experts.

    Raises:
        UserError: If queries and index do not compare, or the points are of other experts.
    """
    clusters = _clusters(parameter_points, index, min(groups, len(index.experts)))
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


def _clusters(points: Float[np.ndarray, "E D"], index: KeyIndex, count: int) -> tuple[tuple[str, ...], ...]:
    """Returns `cluster_experts` of an index's experts, computed once for the same points."""
    made: dict[int, tuple[Any, tuple[tuple[str, ...], ...]]] = index.once("mbc", dict)
    if count not in made or made[count][0] is not points:
        made[count] = (points, cluster_experts(points, index.experts, count))
    return made[count][1]


def _leading_eigenvectors(
    gram: Float[np.ndarray, "E E"], count: int
) -> tuple[Float[np.ndarray, "E D"], Float[np.ndarray, " D"]]:
    """Returns eigenvectors of the largest eigenvalues, largest first, by subspace iteration of 5 rounds."""
    width = min(len(gram), count + 10)
    basis = np.random.default_rng(0).normal(size=(len(gram), width)).astype(np.float32)
    for _ in range(6):
        basis = np.linalg.qr(gram @ basis).Q
    sizes, turn = np.linalg.eigh((basis.T @ (gram @ basis)).astype(np.float64))
    return (basis @ turn)[:, ::-1][:, :count], sizes[::-1][:count]


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
        # Less the squared length of the point itself, which is the same for all centres.
        distances = np.square(centres).sum(axis=1) - 2 * points @ centres.T
        before, owner = owner, distances.argmin(axis=1)
        if (before == owner).all():
            break
        groups = np.unique(owner)
        centres = np.stack([points[owner == group].mean(axis=0) for group in groups])
        owner = np.searchsorted(groups, owner)
    return owner
