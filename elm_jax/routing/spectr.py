"""SpectR: every token goes to the LoRA experts that see most of it (Fleshman and Van Durme 2025).

"SpectR: Dynamically Composing LM Experts with Spectral Routing", arXiv 2504.03454, as the authors' code
(wfleshman/spectr) computes it. With the singular value decomposition ΔW = V S Uᵀ of an expert's
lora_a lora_b, its rotated factors are V and S Uᵀ. A token's score is the length of x V, how much of the token
lies in the directions that the expert reads, whatever it makes of them; the best experts weigh alike, and
their rotated factors are mixed.
"""

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from elm_jax.records import Params
from elm_jax.routing import token_gate
from elm_jax.routing.inputs import KeyIndex, Queries
from elm_jax.routing.registry import register_router
from elm_jax.routing.token_gate import TokenGate


@register_router("spectr", level="token", reads=("params",))
def spectr(
    queries: Queries, index: KeyIndex, *, params: Params, k: int = 4, exclude: Collection[str] = ()
) -> TokenGate:
    """Every token goes to the LoRA experts whose directions hold most of it.

    The `k` experts of largest |x V_e| have the weight w = 1 / k each, and the token gets
    (Σ_f w x V_f) (Σ_e w S_e U_eᵀ). Products of one expert's V and another's S Uᵀ depend on the signs of
    singular vectors, which the authors leave to the decomposition; here `token_gate.decompose_change` fixes
    them, so that the result depends on ΔW alone. The prototypes are as large as the experts' lora_a.

    Args:
        queries: Only the task's name is read.
        index: The experts.
        params: The index's experts stacked, leaves [E, L, …].
        k: How many experts share a token.
        exclude: Datasets; experts that were trained on one of them serve no token.

    Raises:
        UserError: If the experts are no LoRA, or an option is not valid.
    """
    factors = {}
    for path, (lora_a, lora_b) in token_gate.collect_lora_factors(params).items():
        # One expert at a time: decompositions of all would stand in memory together.
        pairs = [token_gate.decompose_change(a, b) for a, b in zip(lora_a, lora_b, strict=True)]
        factors[path] = np.stack([v for v, _ in pairs]), np.stack([su for _, su in pairs])
    prototypes = {path: vectors for path, (vectors, _) in factors.items()}
    gate = token_gate.make_token_gate(
        "spectr", queries.task, index, prototypes, k=k, temperature=1.0, exclude=exclude
    )
    return replace(gate, weighting="uniform", mixing="factors", factors=factors)
