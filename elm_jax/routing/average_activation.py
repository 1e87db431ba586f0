"""Average activation: every token goes to the experts whose training inputs looked like it there.

The baseline of that name in "Learning to Route Among Specialized Experts for Zero-Shot Generalization"
(Muqeeth et al. 2024, arXiv 2402.05859): an expert is known at a projection by the mean of what entered it
while the expert read its own data. A library's keys are such data; no labels and no training are needed.
"""

from collections.abc import Collection, Mapping

import numpy as np
from jaxtyping import Float

from elm_jax.axes import Array
from elm_jax.errors import UserError
from elm_jax.routing import gate as gates
from elm_jax.routing.evidence import Index, Queries
from elm_jax.routing.gate import Gate


def average_activation(
    queries: Queries,
    index: Index,
    *,
    activations: Mapping[str, Float[Array, "E L I"]],
    k: int = 4,
    temperature: float = 1.0,
    exclude: Collection[str] = (),
) -> Gate:
    """Returns the gate softmax(cos(x, mean_e) / temperature) over the `k` experts of largest cosine.

    `activations` are the means over real tokens of what enters a projection, by its path, of the index's
    experts in their order. Of the queries only the task's name is read.

    Raises a UserError if a mean is no number, or an option makes no sense.
    """
    prototypes = {}
    for path, given in sorted(activations.items()):
        means = np.asarray(given, np.float32)
        if not np.isfinite(means).all():
            raise UserError(
                f"Mean activations of {path!r} should be finite, but some are not. Take them anew."
            )
        length = np.linalg.norm(means, axis=-1, keepdims=True)
        # A mean of length 0 has no direction: its cosine with everything is 0.
        prototypes[path] = (means / np.where(length == 0.0, 1.0, length))[..., None]
    if not prototypes:
        raise UserError("Mean activations of at least one projection are wanted, but none came.")
    return gates.gate(
        "average_activation",
        queries.task,
        index,
        prototypes,
        k=k,
        temperature=temperature,
        similarity="cosine",
        exclude=exclude,
    )
