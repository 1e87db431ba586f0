"""Oracle: the expert that measured best on the task itself, which only labels can tell.

No router could do it without labels: it is the upper limit of those that choose one expert per task, and
tables mark it.
"""

import math
from collections.abc import Collection, Mapping

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.records import Selection
from elm_jax.routing.inputs import KeyIndex, Queries, find_allowed_experts
from elm_jax.routing.registry import register_router


@register_router("oracle", reads=("accuracies",))
def oracle(
    queries: Queries, index: KeyIndex, *, accuracies: Mapping[str, float], exclude: Collection[str] = ()
) -> Selection:
    """The expert that is best on the task, in hindsight.

    Args:
        queries: Only the task's name is read.
        index: The experts; of equally good ones the first wins.
        accuracies: Expert id -> accuracy on this task; experts without one are not chosen.
        exclude: Datasets; experts that were trained on one of them are not chosen.

    Raises:
        UserError: If `accuracies` has an unknown expert or no number, or none of an expert that may be
            chosen.
    """
    for expert, accuracy in accuracies.items():
        names.resolve(expert, index.experts, kind="expert", where="the index")
        if math.isnan(accuracy):
            raise UserError(f"Expected a measured accuracy of expert {expert!r}, got {accuracy}.")
    allowed = find_allowed_experts(index, exclude)
    measured = [
        expert for expert, may in zip(index.experts, allowed, strict=True) if may and expert in accuracies
    ]
    if not measured:
        raise UserError(
            f"Expected the accuracy on {queries.task!r} of at least one expert that may be chosen, got none. "
            "Fix: evaluate the experts on it first."
        )
    best = max(measured, key=lambda expert: accuracies[expert])
    return Selection(task=queries.task, router="oracle", weights={best: 1.0}, votes={}, queries=())
