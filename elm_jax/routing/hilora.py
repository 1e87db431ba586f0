"""HiLoRA: the experts whose Gaussians of keys make a task's inputs likeliest (Han et al. 2025).

"HiLoRA: Adaptive Hierarchical LoRA Routing for Training-Free Domain Generalization", arXiv 2510.12266: a
Gaussian is fitted to the embeddings of a few training inputs of every LoRA; a few experts under which an
input is likeliest are taken, and share a budget of rank-one components, among which every token chooses
(`components`, the default of what follows this router). It was written from descriptions of the paper, and
there is no independent implementation to compare with. Ours are: diagonal covariances, drawn towards the mean
of all experts', since keys are fewer than dimensions; that a task's queries choose together; a fixed number
of experts; and the temperature.
"""

from collections.abc import Collection

import numpy as np
from jaxtyping import Float

from elm_jax.records import Selection
from elm_jax.routing.components import COMPONENTS
from elm_jax.routing.inputs import KeyIndex, Queries, find_experts_with_keys, require_vectors
from elm_jax.routing.lorauter import select_nearest
from elm_jax.routing.registry import register_router

SHRINKAGE = 0.1
"""How far an expert's variances are drawn towards the mean of all experts'."""


@register_router("hilora", reads=("vectors",), merge=COMPONENTS)
def hilora(
    queries: Queries,
    index: KeyIndex,
    *,
    k: int = 3,
    temperature: float = 0.1,
    exclude: Collection[str] = (),
) -> Selection:
    """The experts under whose Gaussians of keys the queries are likeliest; every token uses parts of them.

    The weights are softmax(ℓ / temperature) over the `k` largest ℓ, the mean over queries and dimensions of
    an expert's log-density.

    Args:
        queries: The queries.
        index: The keys.
        k: How many experts are taken; fewer if fewer may be chosen.
        temperature: Of the softmax.
        exclude: Datasets; experts that were trained on one of them are not chosen.

    Returns:
        The selection; `nearest` has the likeliest expert of every query.

    Raises:
        UserError: If queries and index do not compare, or an option is not valid.
    """
    vectors = np.asarray(require_vectors(queries, index), np.float64)
    allowed = find_experts_with_keys(index, exclude)
    means, precisions = index.once("hilora", lambda: fit_gaussians(index))
    constants = (np.log(precisions / (2 * np.pi)) - means**2 * precisions).mean(axis=1) / 2
    width = vectors.shape[1]
    densities = constants + (vectors @ (means * precisions).T - (vectors**2) @ precisions.T / 2) / width
    return select_nearest(
        "hilora", queries, index, np.where(allowed, densities, -np.inf), k=k, temperature=temperature
    )


def fit_gaussians(index: KeyIndex) -> tuple[Float[np.ndarray, "E D"], Float[np.ndarray, "E D"]]:
    """Returns the mean and the precisions, 1 / variance, of each expert's keys in every dimension.

    Variances are (1 - s) of the expert's own and s of the mean over experts, s = `SHRINKAGE`, and above 0. An
    expert without keys has mean 0 and the mean variances.
    """
    keys = np.asarray(index.vectors)
    means, variances = np.zeros((2, len(index.experts), keys.shape[1]))
    edges = np.searchsorted(index.expert_of_row, np.arange(len(index.experts) + 1))
    has_keys = np.diff(edges) > 0
    for expert in np.flatnonzero(has_keys):
        own = np.asarray(keys[edges[expert] : edges[expert + 1]], np.float64)
        means[expert], variances[expert] = own.mean(axis=0), own.var(axis=0)
    pooled = variances[has_keys].mean(axis=0)
    variances = np.where(has_keys[:, None], (1 - SHRINKAGE) * variances + SHRINKAGE * pooled, pooled)
    return means, 1 / np.maximum(variances, 1e-6)
