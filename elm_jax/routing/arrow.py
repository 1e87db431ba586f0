"""Arrow: every token goes to the LoRA experts that change its direction most (Ostapenko et al. 2024).

"Towards Modular LLMs by Building and Reusing a Library of LoRAs", arXiv 2405.11157, section 4.1. An expert is
known at a projection by the first singular vector, on the side of the inputs, of its ΔW = lora_a lora_b: of
all inputs of length 1 the one that ΔW answers with most. Nothing is trained and no data is needed.
"""

from collections.abc import Collection

import numpy as np

from elm_jax.records import Params
from elm_jax.routing import gate as gates
from elm_jax.routing.evidence import Index, Queries
from elm_jax.routing.gate import Gate


def arrow(
    queries: Queries,
    index: Index,
    *,
    params: Params,
    k: int = 4,
    temperature: float = 1.0,
    exclude: Collection[str] = (),
) -> Gate:
    """Returns the gate softmax(|x · v_e| / temperature) over the `k` experts of largest |x · v_e|.

    `params` are the index's experts stacked, leaves [E, L, …]; of the queries only the task's name is read.
    A singular vector has no sign, hence the absolute value. An expert that changes nothing has no direction:
    its score is 0.

    Raises a UserError if the experts are no LoRA, or an option makes no sense.
    """
    prototypes = {
        # One expert at a time: decompositions of all would stand in memory together.
        path: np.stack([gates.spectrum(a, b)[0][..., :1] for a, b in zip(lora_a, lora_b, strict=True)])
        for path, (lora_a, lora_b) in gates.factors(params).items()
    }
    return gates.gate("arrow", queries.task, index, prototypes, k=k, temperature=temperature, exclude=exclude)
