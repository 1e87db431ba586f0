"""Average: the weighted mean of every parameter, the paper's merge (Jang et al., arXiv 2302.03202).

Every owned tensor takes part, norm scales included. Of bottlenecks and LoRA it averages the two factors, not
their product, so the merged expert's effect is near the mean of the effects but not equal to it. The paper's
released code does the same; `concatenate` gives the exact mean. For (IA)³, norm scales and full experts,
which act linearly, the average is the exact mean of what each block gives.
"""

import numpy as np

from elm_jax.merging.parameter_groups import MergeInputs, weighted_sum
from elm_jax.merging.registry import register_merge

_FACTORS = "The two factors of every {} were averaged, not their product: the effect is near the mean effect."


@register_merge(
    "average",
    works_on="parameters",
    notes={"adapter": _FACTORS.format("adapter"), "lora": _FACTORS.format("LoRA")},
)
def average(inputs: MergeInputs) -> list[np.ndarray]:
    """The weighted mean of every parameter: the paper's merge.

    Args:
        inputs: One layer of a parameter group.

    Returns:
        The mean of every leaf, in float32.
    """
    leaves = range(len(inputs.group.leaves))
    return [weighted_sum((value[leaf] for value in inputs.values), inputs.weights) for leaf in leaves]
