"""Average activation: every token goes to the experts whose training inputs looked like it there.

The baseline of that name in "Learning to Route Among Specialized Experts for Zero-Shot Generalization"
(Muqeeth et al. 2024, arXiv 2402.05859): an expert's prototype at a projection is the mean of what entered it
while the expert read its own data. No labels and no training are needed.
"""

from collections.abc import Collection, Mapping

import numpy as np
from jaxtyping import Float

from elm_jax.axes import Array
from elm_jax.errors import UserError
from elm_jax.routing import token_gate
from elm_jax.routing.inputs import KeyIndex, Queries
from elm_jax.routing.registry import register_router
from elm_jax.routing.token_gate import TokenGate


@register_router("average_activation", level="token", reads=("activations",))
def average_activation(
    queries: Queries,
    index: KeyIndex,
    *,
    activations: Mapping[str, Float[Array, "E L I"]],
    k: int = 4,
    temperature: float = 1.0,
    exclude: Collection[str] = (),
) -> TokenGate:
    """Every token goes to the LoRA experts whose mean input it is nearest to.

    The gate is softmax(cos(x, mean_e) / temperature) over the `k` experts of largest cosine.

    Args:
        queries: Only the task's name is read.
        index: The experts.
        activations: By path of a projection, the means over real tokens of what enters it, of the index's
            experts in their order.
        k: How many experts share a token.
        temperature: Of the softmax.
        exclude: Datasets; experts that were trained on one of them serve no token.

    Raises:
        UserError: If a mean is not finite, or an option is not valid.
    """
    prototypes = {}
    for path, values in sorted(activations.items()):
        means = np.asarray(values, np.float32)
        if not np.isfinite(means).all():
            raise UserError(
                f"Expected finite mean activations at {path!r}, got others. Fix: take them again."
            )
        length = np.linalg.norm(means, axis=-1, keepdims=True)
        # A mean of length 0 has no direction: its cosine with everything is 0.
        prototypes[path] = (means / np.where(length == 0.0, 1.0, length))[..., None]
    if not prototypes:
        raise UserError("Expected mean activations of at least one projection, got none.")
    return token_gate.make_token_gate(
        "average_activation",
        queries.task,
        index,
        prototypes,
        k=k,
        temperature=temperature,
        similarity="cosine",
        exclude=exclude,
    )
