"""SpectR: every token goes to the LoRA experts that change it most (Fleshman and Van Durme 2025).

"SpectR: Dynamically Composing LM Experts with Spectral Routing", arXiv 2504.03454. With the singular value
decomposition ΔW = U S V' of an expert's lora_a lora_b, its rotated factors are U S and V', and a token's
score is the length of x U S, which is that of x ΔW: unlike Arrow's, it counts all directions and how much
they weigh.
"""

from collections.abc import Collection

import numpy as np

from elm_jax.records import Params
from elm_jax.routing import gate as gates
from elm_jax.routing.evidence import Index, Queries
from elm_jax.routing.gate import Gate


def spectr(
    queries: Queries,
    index: Index,
    *,
    params: Params,
    k: int = 4,
    temperature: float = 1.0,
    exclude: Collection[str] = (),
) -> Gate:
    """Returns the gate softmax(|x U_e S_e| / temperature) over the `k` experts where it is largest.

    `params` are the index's experts stacked, leaves [E, L, …]; of the queries only the task's name is read.
    The prototypes are as large as the experts' lora_a.

    Raises a UserError if the experts are no LoRA, or an option makes no sense.
    """
    prototypes = {
        path: np.stack([_rotated(a, b) for a, b in zip(lora_a, lora_b, strict=True)])
        for path, (lora_a, lora_b) in gates.factors(params).items()
    }
    return gates.gate(
        "spectr", queries.task, index, prototypes, k=k, temperature=temperature, exclude=exclude
    )


def _rotated(lora_a: np.ndarray, lora_b: np.ndarray) -> np.ndarray:
    vectors, sizes = gates.spectrum(lora_a, lora_b)
    return vectors * sizes[..., None, :]
