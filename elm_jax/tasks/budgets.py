"""Budgets: how long, how fast and on how much the paper trained its experts, by task and by dataset.

Those of prompts, of datasets' adapters and of targets are the catalogue's `training`, `exceptions` and
`dataset_expert`, as the original's configurations have them. That of a fully trained dataset expert, one for
all datasets, is `FULL` here.
"""

import math
from dataclasses import dataclass

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.records import TaskSpec
from elm_jax.tasks import aliases
from elm_jax.tasks.datasets import Dataset, Training, all_datasets, training


@dataclass(frozen=True)
class PaperBudget:
    """What one expert's training spends."""

    epochs: int | float
    learning_rate: float  # at the start
    batch_size: int  # rows a step
    max_prompt: int  # tokens of an input, the end included
    max_answer: int  # tokens of a target, likewise
    max_rows: int | None  # rows of a task at most, or of the whole dataset in `FULL`; None is all


FULL = PaperBudget(
    epochs=5, learning_rate=1e-4, batch_size=128, max_prompt=512, max_answer=128, max_rows=100_000
)
"""Of a dataset expert that owns all parameters, the same for every dataset."""


def get_prompt_expert_budget(spec: TaskSpec) -> PaperBudget:
    """Returns the budget of one prompt's expert: its dataset's, or its own where it is an exception.

    Raises UserError for a task that the catalogue does not have, or that is for evaluation alone.
    """
    dataset = _dataset(spec.dataset)
    prompt = names.resolve(spec.prompt, dataset.prompts, kind="prompt", where=f"dataset {dataset.name!r}")
    return _make_budget(training(dataset, prompt))


def get_dataset_budget(name: str) -> PaperBudget:
    """Returns the budget of one adapter for all prompts of a dataset; its cap is for each prompt.

    The original trained none for a dataset of one prompt, whose expert it would be.
    """
    dataset = _dataset(name)
    if dataset.dataset_expert is not None:
        return _make_budget(dataset.dataset_expert)
    if len(dataset.prompts) == 1:
        return _make_budget(training(dataset, next(iter(dataset.prompts))))
    raise UserError(
        f"A budget of one adapter for all of {dataset.name!r} is wanted, but the catalogue has no "
        "`dataset_expert` for it."
    )


def get_target_expert_budget(spec: TaskSpec) -> PaperBudget:
    """Returns the budget of a generative target's expert; of 16 such prompts ten have one."""
    targets = {name: dataset for name, dataset in all_datasets().items() if dataset.group == "targets"}
    trained = [names.task_id(name, prompt) for name, each in targets.items() for prompt in each.experts]
    names.resolve(spec.id, trained, kind="target with an expert", where="the catalogue")
    return get_prompt_expert_budget(spec)


def get_full_finetuning_budget(name: str) -> PaperBudget:
    """Returns the budget of a dataset expert that owns all parameters: `FULL`, if the dataset is known."""
    _dataset(name)
    return FULL


def count_steps(budget: PaperBudget, rows: int) -> int:
    """Returns how many steps a budget is on so many rows, those beyond its cap left out before.

    The last step of an epoch takes what rows are left, as the original's trainer has it.

    >>> count_steps(PaperBudget(5, 1e-4, 8, 256, 128, 50_000), 25_262)
    15790
    """
    return math.ceil(budget.epochs * math.ceil(rows / budget.batch_size))


def _make_budget(training: Training) -> PaperBudget:
    return PaperBudget(
        epochs=training.epochs,
        learning_rate=training.rate,
        batch_size=training.batch,
        max_prompt=training.source_length,
        max_answer=training.target_length,
        max_rows=training.rows,
    )


def _dataset(name: str) -> Dataset:
    """Returns a dataset by any spelling of its name."""
    known = aliases.list_spellings(all_datasets())
    if name in known:
        return all_datasets()[known[name]]
    near = names.near_matches(name, known)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise UserError(f"A budget for {name!r} is wanted, but the catalogue has no such dataset.{hint}")
