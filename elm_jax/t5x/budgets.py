"""Budgets under T5X: what a training of one prompt takes from the paper where its recipe says None.

The launcher adds the values to T5X's flags, so that the gin file beside the checkpoints has them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.t5x import registry
from elm_jax.tasks import budgets, rendering
from elm_jax.tasks.budgets import PaperBudget
from elm_jax.tasks.data_source import Source

DEFAULT_BUDGET = PaperBudget(
    epochs=0, learning_rate=1e-4, batch_size=8, max_prompt=256, max_answer=128, max_rows=None
)
"""Of tasks that the paper has no budget for, all but the steps."""


def complete_budget(
    macros: Mapping[str, Any], source: Source, files: Sequence[storage.PathLike] = ()
) -> dict[str, Any]:
    """Returns values for those macros of a budget that are None.

    Args:
        macros: Values by name, `MIXTURE_OR_TASK_NAME` among them.
        source: Where rows and templates come from; rows are counted, for the steps that epochs take.
        files: Files that define tasks of one's own.

    Raises:
        UserError: If the steps are not given, and the paper has no budget for the task; or if its rows cannot
            be read.
    """
    absent = {name for name in ("TRAIN_STEPS", *_values(DEFAULT_BUDGET)) if macros.get(name, 0) is None}
    if not absent:
        return {}
    specs = registry.find_specs(macros["MIXTURE_OR_TASK_NAME"], files)
    try:
        budget = budgets.get_prompt_expert_budget(specs[0]) if len(specs) == 1 else None
    except UserError:  # the paper has none
        budget = None
    found = _values(budget or DEFAULT_BUDGET)
    if "TRAIN_STEPS" in absent:
        if budget is None:
            raise UserError(
                f"Expected TRAIN_STEPS for {macros['MIXTURE_OR_TASK_NAME']!r}, which the paper trained no "
                "prompt's expert on, got none. Fix: give --gin.TRAIN_STEPS."
            )
        rows = len(rendering.examples(specs[0], source=source).examples)
        size = macros.get("BATCH_SIZE") or budget.batch_size
        found["TRAIN_STEPS"] = budgets.count_steps(replace(budget, batch_size=size), rows)
    return {name: found[name] for name in sorted(absent)}


def _values(budget: PaperBudget) -> dict[str, Any]:
    return {
        "BATCH_SIZE": budget.batch_size,
        "LEARNING_RATE": budget.learning_rate,
        "TASK_FEATURE_LENGTHS": {"inputs": budget.max_prompt, "targets": budget.max_answer},
    }
