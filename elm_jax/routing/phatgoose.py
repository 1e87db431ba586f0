"""PHATGOOSE: every token goes to the experts whose trained gates open to it most (Muqeeth et al. 2024).

"Learning to Route Among Specialized Experts for Zero-Shot Generalization", arXiv 2402.05859. Beside each
expert, frozen like the base, a gate is trained on the expert's own data at every projection that it changes:
a token gets σ(g · x) of the expert's change (`elm train --gates`). Then the gates are a router, as the
authors' code (r-three/phatgoose) computes it: tokens and gates are standardised, and the best two experts
share a token.
"""

from collections.abc import Collection, Mapping

from jaxtyping import Float

from elm_jax.axes import Array
from elm_jax.routing import token_gate
from elm_jax.routing.inputs import KeyIndex, Queries
from elm_jax.routing.registry import register_router
from elm_jax.routing.token_gate import TokenGate


@register_router("phatgoose", level="token", reads=("gates",))
def phatgoose(
    queries: Queries,
    index: KeyIndex,
    *,
    gates: Mapping[str, Float[Array, "E L I"]],
    k: int = 2,
    exclude: Collection[str] = (),
) -> TokenGate:
    """Every token goes to the LoRA experts whose trained gates it is most like.

    With n(v) = (v - mean v) / √(var v + 1e-5), the gate is softmax(n(x) · n(g_e) / √I) over the `k` experts
    where that is largest.

    Args:
        queries: Only the task's name is read.
        index: The experts.
        gates: By path of a projection, the gates of the index's experts in their order.
        k: How many experts share a token.
        exclude: Datasets; experts that were trained on one of them serve no token.

    Raises:
        UserError: If a gate is not finite, or `k` is not valid.
    """
    return token_gate.make_standardized_gate("phatgoose", queries.task, index, gates, k=k, exclude=exclude)
