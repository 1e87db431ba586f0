"""Average: the weighted mean of every parameter, the paper's merge (Jang et al., arXiv 2302.03202).

Every owned tensor takes part, norm scales included. Of bottlenecks and LoRA it averages the two factors, not
their product, so the merged expert's effect is near the mean of the effects but not equal to it. The paper's
released code does the same; `concatenate` gives the exact mean. For (IA)³, norm scales and full experts,
which act linearly, the average is the exact mean of what each block gives.
"""

import numpy as np

from elm_jax.errors import UserError
from elm_jax.merging.parameter_groups import MergeInputs, weighted_sum
from elm_jax.merging.registry import register_merge
from elm_jax.models.expert_kinds import VERA

_FACTORS = "The two factors of every {} were averaged, not their product: the effect is near the mean effect."


@register_merge(
    "average",
    works_on="parameters",
    notes={
        "adapter": _FACTORS.format("adapter"),
        "lora": _FACTORS.format("LoRA"),
        "dora": _FACTORS.format("DoRA") + " So were the magnitudes.",
        "vera": "The vectors of every projection were averaged, not what they make of the shared matrices.",
        "prompt": "The vectors of the soft prompts were averaged, place by place.",
    },
)
def average(inputs: MergeInputs) -> list[np.ndarray]:
    """The weighted mean of every parameter: the paper's merge.

    Args:
        inputs: One layer of a parameter group.

    Returns:
        The mean of every leaf, in float32.
    """
    if inputs.group.path.startswith(f"{VERA}/"):
        return [_require_shared(inputs)]
    leaves = range(len(inputs.group.leaves))
    return [weighted_sum((value[leaf] for value in inputs.values), inputs.weights) for leaf in leaves]


def _require_shared(inputs: MergeInputs) -> np.ndarray:
    """Returns the matrix that VeRA experts share, bit by bit, so that what is merged shares it too."""
    matrices = sorted((np.asarray(own) for (own,) in inputs.values), key=lambda own: own.dtype.itemsize)
    narrow = matrices[0].dtype
    if not all(np.array_equal(matrices[0], own.astype(narrow)) for own in matrices):
        raise UserError(
            f"Expected VeRA experts that share their matrices, got others at {inputs.group.path!r}. Fix: "
            "train them with one value of the option 'seed'."
        )
    return matrices[-1].astype(np.float32)
