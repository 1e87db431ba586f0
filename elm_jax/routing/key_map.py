"""Key map: the keys of experts and the queries of tasks in a plane, for people to see what lies near what.

The plane is that of the two main components of the keys (principal component analysis, Pearson 1901), each
key scaled to unit length and their mean subtracted; queries are projected onto it in the same way. A sample
is drawn, by a fixed seed.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from elm_jax import names
from elm_jax.reporting.records import KeyMap, MapPoints
from elm_jax.routing.inputs import KeyIndex, Queries

MOST_POINTS = 200
"""Keys that are drawn at most, and queries."""
COORDINATE_DIGITS = 4
MIN_SECOND_SINGULAR_SHARE = 1e-6
"""Keys vary along one direction alone if the second singular value is no larger a share of the first."""


def draw_key_map(index: KeyIndex, queries: Sequence[Queries]) -> KeyMap | None:
    """Returns where keys and queries lie; None if the keys span no plane, or no query compares with them.

    The order of experts makes no difference. An axis points to where its largest component is positive.

    Args:
        index: The keys.
        queries: Of each task some; if it has several of the keys' text format, the first are taken.
    """
    comparable = [
        each for each in queries if each.vectors is not None and each.text_format == index.text_format
    ]
    by_task = {each.task: np.asarray(each.vectors) for each in reversed(comparable)}
    tasks = sorted(by_task)
    datasets = np.repeat([names.split_id(task)[0] for task in tasks], [len(by_task[task]) for task in tasks])
    experts = np.array(sorted(index.experts))
    expert_of_key = np.searchsorted(experts, index.experts)[index.expert_of_row]
    dataset_names, dataset_of_query = np.unique(datasets, return_inverse=True)
    keys, asked = _sample(expert_of_key), _sample(dataset_of_query)
    if not (len(keys) and len(asked)):
        return None
    drawn = _scale_to_unit(np.asarray(index.vectors)[keys])
    center = drawn.mean(axis=0)
    _, sizes, directions = np.linalg.svd(drawn - center, full_matrices=False)
    if len(sizes) < 2 or sizes[1] <= MIN_SECOND_SINGULAR_SHARE * sizes[0]:
        return None
    axes = directions[:2]
    axes = axes * np.sign(axes[[0, 1], np.abs(axes).argmax(axis=1)])[:, None]
    projected = _scale_to_unit(np.concatenate([by_task[task] for task in tasks])[asked])
    return KeyMap(
        embedder=index.embedder,
        shares=tuple((sizes[:2] ** 2 / (sizes**2).sum()).round(COORDINATE_DIGITS).tolist()),
        keys=_group((drawn - center) @ axes.T, experts[expert_of_key[keys]]),
        queries=_group((projected - center) @ axes.T, dataset_names[dataset_of_query[asked]]),
        key_count=len(expert_of_key),
        query_count=len(datasets),
    )


def _sample(owners: Int[np.ndarray, " N"]) -> Int[np.ndarray, " n"]:
    """Returns rows at random, of every owner as many as of the others as far as it has them.

    They are in the order of owners; what is chosen of an owner does not depend on where its rows lie.
    """
    rng = np.random.default_rng(0)
    rows = np.argsort(owners, kind="stable")
    shuffled = rng.permutation(len(rows))
    by_owner = shuffled[np.argsort(owners[rows][shuffled], kind="stable")]
    sizes = np.bincount(owners)
    turns = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen = by_owner[np.lexsort((rng.permutation(len(rows)), turns))][:MOST_POINTS]
    return rows[np.sort(chosen)]


def _scale_to_unit(vectors: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    vectors = vectors.astype(np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float64).tiny)


def _group(points: Float[np.ndarray, "N 2"], owners: np.ndarray) -> tuple[MapPoints, ...]:
    """Returns the points of each owner; those of one are together."""
    places = (points.round(COORDINATE_DIGITS) + 0.0).tolist()  # -0.0 is 0.0
    grouped: dict[str, list[list[float]]] = {}
    for owner, place in zip(owners.tolist(), places, strict=True):
        grouped.setdefault(owner, []).append(place)
    return tuple(
        MapPoints(name, tuple(x for x, _ in own), tuple(y for _, y in own)) for name, own in grouped.items()
    )
