"""Average activation: every token goes to the experts whose training inputs looked like it there.

The baseline of that name in "Learning to Route Among Specialized Experts for Zero-Shot Generalization"
(Muqeeth et al. 2024, arXiv 2402.05859), as the authors' code (r-three/phatgoose) computes it: an expert's
prototype at a projection is the mean over examples of the mean over tokens of what entered it while the
expert read its own data, and tokens are compared with it as with PHATGOOSE's trained gates. No labels and no
training are needed. Their scripts count padding in the decoder's means; here it is left out everywhere.
"""

from collections.abc import Collection, Mapping

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
    k: int = 2,
    temperature: float = 1.0,
    exclude: Collection[str] = (),
) -> TokenGate:
    """Every token goes to the LoRA experts whose mean input it is most like.

    With n(v) = (v - mean v) / √(var v + 1e-5), the gate is softmax(n(x) · n(mean_e) / √I / temperature) over
    the `k` experts where that is largest; PHATGOOSE has temperature 1.

    Args:
        queries: Only the task's name is read.
        index: The experts.
        activations: By path of a projection, the means of what enters it, of the index's experts in their
            order.
        k: How many experts share a token.
        temperature: Of the softmax.
        exclude: Datasets; experts that were trained on one of them serve no token.

    Raises:
        UserError: If a mean is not finite, or an option is not valid.
    """
    if not activations:
        raise UserError("Expected mean activations of at least one projection, got none.")
    return token_gate.make_standardized_gate(
        "average_activation",
        queries.task,
        index,
        activations,
        k=k,
        temperature=temperature,
        exclude=exclude,
    )
