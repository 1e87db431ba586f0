"""Oracle: the expert that measured best on the task itself, which only labels can tell.

It is no router one could use, but the limit of those that choose one expert a task; tables keep it apart.
"""

import math
from collections.abc import Collection, Mapping

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.records import Selection
from elm_jax.routing import evidence
from elm_jax.routing.evidence import Index, Queries


def oracle(
    queries: Queries, index: Index, *, accuracies: Mapping[str, float], exclude: Collection[str] = ()
) -> Selection:
    """Returns the expert with the highest of `accuracies` (expert id -> accuracy on this task).

    Of equals the first of the index wins. Experts without a measurement are passed over.

    Raises a UserError if an unknown expert is among `accuracies`, if one of them is no number, or if no
    expert that may be chosen was measured.
    """
    for expert, accuracy in accuracies.items():
        names.resolve(expert, index.experts, kind="expert", where="the index")
        if math.isnan(accuracy):
            raise UserError(f"A measured accuracy is wanted for expert {expert!r}, but {accuracy} came.")
    allowed = evidence.candidates(index, exclude)
    measured = [
        expert for expert, may in zip(index.experts, allowed, strict=True) if may and expert in accuracies
    ]
    if not measured:
        raise UserError(
            f"The oracle needs the accuracy of at least one expert on {queries.task!r}, but none that may be "
            "chosen was measured. Evaluate the experts on it first."
        )
    best = max(measured, key=lambda expert: accuracies[expert])
    return Selection(task=queries.task, router="oracle", weights={best: 1.0}, votes={}, queries=())
