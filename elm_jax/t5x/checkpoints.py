"""Checkpoints under T5X: how an expert's training starts from a base, or continues.

Both functions are hooks of T5X. They change what happens with INITIAL_CHECKPOINT_PATH alone: a run that is
resumed restores everything that it saved.
"""

import importlib
from typing import Any

from elm_jax import storage
from elm_jax.t5x import module

OPTIMIZER_STATE = (r"state/param_states/.*", r"state/step")


def restore_rules(kind: str) -> tuple[tuple[str, None], ...]:
    """Returns T5X's assignment map from a base: parameters that only the expert has are initialised.

    The optimizer's state and the step start anew too, so that the step counts the expert's own training.

    Args:
        kind: Kind of the expert.

    Returns:
        (pattern, None) for all that is not restored. T5X requires every pattern to match something.
    """
    patterns = (
        OPTIMIZER_STATE if kind == "full" else (f"target/{module.EXPERT_ONLY.pattern}", *OPTIMIZER_STATE)
    )
    return tuple((pattern, None) for pattern in patterns)


def get_dataset(*arguments: Any, model_dir: storage.PathLike, **options: Any) -> Any:
    """Returns T5X's training data, which continue only from a checkpoint of the run itself.

    With `SaveCheckpointConfig.save_dataset` T5X would restore a position in the data from the initial
    checkpoint too. That has none, or one in other data.

    Args:
        *arguments: For `t5x.utils.get_dataset`.
        model_dir: The run's directory.
        **options: For `t5x.utils.get_dataset`.

    Returns:
        An iterator over batches, as T5X takes them.
    """
    iterator: Any = importlib.import_module("clu.data.dataset_iterator").TfDatasetIterator
    t5x_get_dataset: Any = importlib.import_module("t5x.utils").get_dataset
    run = storage.path(model_dir).resolve()

    class RunIterator(iterator):
        def restore(self, filename: storage.PathLike) -> None:
            if storage.path(filename).resolve().is_relative_to(run):
                super().restore(filename)

    return RunIterator(t5x_get_dataset(*arguments, **options), checkpoint=True)
