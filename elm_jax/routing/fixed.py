"""Fixed: one expert named beforehand, the same for every task."""

from collections.abc import Collection

from elm_jax import names
from elm_jax.errors import ContaminationError
from elm_jax.records import Selection
from elm_jax.routing.inputs import KeyIndex, Queries, find_allowed_experts
from elm_jax.routing.registry import register_router


@register_router("fixed", reads=("expert",))
def fixed(queries: Queries, index: KeyIndex, *, expert: str, exclude: Collection[str] = ()) -> Selection:
    """One expert by its id, of the library or of the composites.

    Args:
        queries: Only the task's name is read.
        index: The experts.
        expert: The expert's id.
        exclude: Datasets.

    Raises:
        UserError: If the index has no such expert.
        ContaminationError: If it was trained on a dataset in `exclude`. It was named on purpose, so it is
            not skipped silently.
    """
    expert = names.resolve(expert, index.experts, kind="expert", where="the index")
    position = index.experts.index(expert)
    if not find_allowed_experts(index, exclude)[position]:
        raise ContaminationError(
            f"Expected an expert for {queries.task!r} trained on none of the excluded datasets, got "
            f"{expert!r}, which was trained on {', '.join(index.datasets[position])}. Fix: name another one."
        )
    return Selection(task=queries.task, router="fixed", weights={expert: 1.0}, votes={}, queries=())
