"""LoRAuter: the experts of the tasks that look most like this one, weighed by how much they do (2026).

"Effective LoRA Adapter Routing using Task Representations" (Dhasade et al. 2026, arXiv 2601.21795): a task is
represented by the mean embedding of a few of its inputs, tasks are compared rather than adapters, and the
adapters of the nearest tasks are composed with softmax weights. The paper picks each task's adapter from a
pool by validation, and routes single queries; in a library every expert has a task of its own, and here a
task's queries choose together. It was written from the paper's description, and there is no independent
implementation to compare with.
"""

from collections.abc import Collection

import numpy as np
from jaxtyping import Float

from elm_jax.errors import UserError
from elm_jax.records import Selection
from elm_jax.routing.centroid import mean_directions, normalize
from elm_jax.routing.inputs import KeyIndex, Queries, find_experts_with_keys, require_vectors
from elm_jax.routing.registry import register_router


@register_router("lorauter", reads=("vectors",))
def lorauter(
    queries: Queries,
    index: KeyIndex,
    *,
    k: int = 3,
    temperature: float = 0.2,
    exclude: Collection[str] = (),
) -> Selection:
    """The experts whose tasks are nearest to the task, with softmax weights of their similarities.

    A task's similarity to an expert's is the mean over queries of the cosine to the mean of its keys; the
    weights are softmax(similarity / temperature) over the `k` largest. Composition of outputs is the merge
    `concatenate`.

    Args:
        queries: The queries.
        index: The keys.
        k: How many experts are taken; fewer if fewer may be chosen.
        temperature: Of the softmax.
        exclude: Datasets; experts that were trained on one of them are not chosen.

    Returns:
        The selection; `nearest` has the nearest expert of every query.

    Raises:
        UserError: If queries and index do not compare, or an option is not valid.
    """
    vectors = normalize(require_vectors(queries, index))
    allowed = find_experts_with_keys(index, exclude)
    means = index.once("centroid", lambda: mean_directions(index))
    cosines = np.where(allowed, vectors @ means.T, -np.inf)
    return select_nearest("lorauter", queries, index, cosines, k=k, temperature=temperature)


def select_nearest(
    router: str,
    queries: Queries,
    index: KeyIndex,
    nearness: Float[np.ndarray, "Q E"],
    *,
    k: int,
    temperature: float,
) -> Selection:
    """Returns the `k` experts that are nearest in the mean over queries, weighed by a softmax of that mean.

    Args:
        router: The router's name.
        queries: The queries.
        index: The experts.
        nearness: Of every expert to every query; -inf for those that may not be chosen.
        k: How many experts are taken; fewer if fewer may be chosen.
        temperature: Of the softmax.

    Raises:
        UserError: If `k` or the temperature is not valid.
    """
    if k < 1 or not temperature > 0:
        raise UserError(f"Expected k of at least 1 and a temperature above 0, got {k} and {temperature}.")
    of_task = nearness.mean(axis=0)
    chosen = np.argsort(-of_task, kind="stable")[: min(k, int((of_task > -np.inf).sum()))]
    shares = np.exp((of_task[chosen] - of_task[chosen[0]]) / temperature)
    weights = (shares / shares.sum()).tolist()
    nearest = nearness.argmax(axis=1)
    counts = np.bincount(nearest, minlength=len(index.experts))
    ranked = [int(place) for place in np.argsort(-counts, kind="stable") if counts[place]]
    return Selection(
        queries.task,
        router,
        {index.experts[place]: weight for place, weight in zip(chosen, weights, strict=True)},
        votes={index.experts[place]: int(counts[place]) for place in ranked},
        queries=queries.row_ids,
        nearest=tuple(
            (index.experts[place], float(own[place])) for place, own in zip(nearest, nearness, strict=True)
        ),
    )
