"""Arrow: every token goes to the LoRA experts that change its direction most (Ostapenko et al. 2024).

"Towards Modular LLMs by Building and Reusing a Library of LoRAs", arXiv 2405.11157, section 4.1. An expert's
prototype at a projection is the first singular vector, on the side of the inputs, of its ΔW = lora_a lora_b:
of all inputs of length 1 the one that ΔW changes most. Nothing is trained and no data is needed. The authors'
code (microsoft/mttl) mixes the factors of the experts by default, PEFT's sums their outputs; both are here.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import get_args

import numpy as np
from jaxtyping import Float

from elm_jax.errors import UserError
from elm_jax.models.gating import Mixing
from elm_jax.records import Params
from elm_jax.routing import token_gate
from elm_jax.routing.inputs import KeyIndex, Queries
from elm_jax.routing.registry import register_router
from elm_jax.routing.token_gate import Factors, TokenGate


@register_router("arrow", level="token", reads=("params",))
def arrow(
    queries: Queries,
    index: KeyIndex,
    *,
    params: Params,
    k: int = 4,
    temperature: float = 1.0,
    mixing: str = "factors",
    exclude: Collection[str] = (),
) -> TokenGate:
    """Every token goes to the LoRA experts whose main direction it points along.

    The gate is softmax(|x · v_e| / temperature) over the `k` experts of largest |x · v_e|, v_e the singular
    vector. It has no sign, hence the absolute value. An expert that changes nothing has score 0.

    Args:
        queries: Only the task's name is read.
        index: The experts.
        params: The index's experts stacked, leaves [E, L, …].
        k: How many experts share a token.
        temperature: Of the softmax.
        mixing: "factors" for (Σ_f w_f x A_f) (Σ_e w_e B_e), the authors' default; "outputs" for
            Σ_e w_e (x A_e) B_e, as in PEFT.
        exclude: Datasets; experts that were trained on one of them serve no token.

    Raises:
        UserError: If the experts are no LoRA, or an option is not valid.
    """
    prototypes = main_directions(token_gate.collect_lora_factors(params))
    require_mixing(mixing)
    gate = token_gate.make_token_gate(
        "arrow", queries.task, index, prototypes, k=k, temperature=temperature, exclude=exclude
    )
    return replace(gate, mixing=mixing)


def main_directions(factors: Mapping[str, Factors]) -> dict[str, Float[np.ndarray, "E L I 1"]]:
    """Returns by path the first singular vector of every expert's change, on the side of the inputs."""
    return {
        # One expert at a time: decompositions of all would stand in memory together.
        path: np.stack(
            [token_gate.decompose_change(a, b)[0][..., :1] for a, b in zip(lora_a, lora_b, strict=True)]
        )
        for path, (lora_a, lora_b) in factors.items()
    }


def require_mixing(mixing: str) -> None:
    """Raises a UserError if there is no such form of mixing."""
    if mixing not in get_args(Mixing):
        raise UserError(f"Expected mixing {' or '.join(get_args(Mixing))}, got {mixing!r}. Fix: give one.")
