"""SpectR: every token goes to the LoRA experts that change it most (Fleshman and Van Durme 2025).

"SpectR: Dynamically Composing LM Experts with Spectral Routing", arXiv 2504.03454. With the singular value
decomposition ΔW = U S V' of an expert's lora_a lora_b, its rotated factors are U S and V', and a token's
score is the length of x U S, which is that of x ΔW: unlike Arrow's, it counts all directions and how much
they weigh.
"""

from collections.abc import Collection

import numpy as np

from elm_jax.records import Params
from elm_jax.routing import token_gate
from elm_jax.routing.inputs import KeyIndex, Queries
from elm_jax.routing.registry import register_router
from elm_jax.routing.token_gate import TokenGate


@register_router("spectr", level="token", reads=("params",))
def spectr(
    queries: Queries,
    index: KeyIndex,
    *,
    params: Params,
    k: int = 4,
    temperature: float = 1.0,
    exclude: Collection[str] = (),
) -> TokenGate:
    """Every token goes to the LoRA experts that change it most, counting all their directions.

    The gate is softmax(|x U_e S_e| / temperature) over the `k` experts where it is largest. The prototypes
    are as large as the experts' lora_a.

    Args:
        queries: Only the task's name is read.
        index: The experts.
        params: The index's experts stacked, leaves [E, L, …].
        k: How many experts share a token.
        temperature: Of the softmax.
        exclude: Datasets; experts that were trained on one of them serve no token.

    Raises:
        UserError: If the experts are no LoRA, or an option is not valid.
    """
    prototypes = {
        path: np.stack([_scaled_singular_vectors(a, b) for a, b in zip(lora_a, lora_b, strict=True)])
        for path, (lora_a, lora_b) in token_gate.collect_lora_factors(params).items()
    }
    return token_gate.make_token_gate(
        "spectr", queries.task, index, prototypes, k=k, temperature=temperature, exclude=exclude
    )


def _scaled_singular_vectors(lora_a: np.ndarray, lora_b: np.ndarray) -> np.ndarray:
    vectors, sizes = token_gate.decompose_change(lora_a, lora_b)
    return vectors * sizes[..., None, :]
