"""Fixed: one expert named beforehand, the same for every task."""

from collections.abc import Collection

from elm_jax import names
from elm_jax.errors import ContaminationError
from elm_jax.records import Selection
from elm_jax.routing import evidence
from elm_jax.routing.evidence import Index, Queries


def fixed(queries: Queries, index: Index, *, expert: str, exclude: Collection[str] = ()) -> Selection:
    """Returns the expert with that id at weight 1.

    Raises a UserError if the index has no such expert, and a ContaminationError if it was trained on a
    dataset in `exclude`: a name given on purpose is not passed over in silence.
    """
    expert = names.resolve(expert, index.experts, kind="expert", where="the index")
    position = index.experts.index(expert)
    if not evidence.candidates(index, exclude)[position]:
        raise ContaminationError(
            f"An expert trained on none of the excluded datasets is wanted for {queries.task!r}, but "
            f"{expert!r} was trained on {', '.join(index.datasets[position])}. Name another expert."
        )
    return Selection(task=queries.task, router="fixed", weights={expert: 1.0}, votes={}, queries=())
