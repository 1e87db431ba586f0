"""Checkpoints: how a base becomes the beginning of an expert when T5X restores it.

Both are hooks that T5X has; they act on INITIAL_CHECKPOINT_PATH alone, and a run that is resumed restores all
that it saved.
"""

import importlib
from typing import Any

from elm_jax import storage
from elm_jax.t5x import module

STATE = (r"state/param_states/.*", r"state/step")


def fresh(kind: str) -> tuple[tuple[str, None], ...]:
    """Returns the rules by which what an expert adds, the optimizer's state and the step start anew.

    So the step counts the expert's own training, whatever the base's was. T5X wants every rule to match.
    """
    return tuple(
        (pattern, None)
        for pattern in (STATE if kind == "full" else (f"target/{module.ADDED.pattern}", *STATE))
    )


def batches(*arguments: Any, model_dir: storage.PathLike, **options: Any) -> Any:
    """Returns T5X's training data, but for one thing: only a checkpoint of the run itself says where it was.

    With `SaveCheckpointConfig.save_dataset` T5X wants a place in the data of the initial checkpoint too,
    which has none, or one of other data.
    """
    theirs: Any = importlib.import_module("clu.data.dataset_iterator").TfDatasetIterator
    get_dataset: Any = importlib.import_module("t5x.utils").get_dataset
    home = storage.path(model_dir).resolve()

    class Batches(theirs):
        def restore(self, filename: storage.PathLike) -> None:
            if storage.path(filename).resolve().is_relative_to(home):
                super().restore(filename)

    return Batches(get_dataset(*arguments, **options), checkpoint=True)
