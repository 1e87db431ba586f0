"""Loading of jobs: the rows of an expert, rendered and tokenised, and whether the library has it already."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from elm_jax.data import task_rows, token_losses, tokenized_rows
from elm_jax.data.ragged import JoinedTokens, RaggedTokens
from elm_jax.data.tokenized_rows import TokenizedRows
from elm_jax.errors import UserError
from elm_jax.experts.library import Library
from elm_jax.records import RowCounts, TaskSpec
from elm_jax.session.workspace import Run
from elm_jax.tasks import original, row_counts
from elm_jax.tasks.data_source import Source
from elm_jax.training import config as configs
from elm_jax.training import expert_configs
from elm_jax.training.expert_configs import ExpertTrainConfig
from elm_jax.training.jobs import TrainingJob, ValidationRows
from elm_jax.weights.base_model import Base


def load_job(run: Run, expert: ExpertTrainConfig) -> TrainingJob:
    """Renders and tokenises the rows of an expert, those to validate it on too."""
    source = expert_configs.training_source(expert, run.source)
    rows = [_prepare(run, expert, spec, source) for spec in expert.specs]
    prompts, targets = _join([each.inputs for each in rows]), _join([each.targets for each in rows])
    validation = None
    if expert.config.checkpoint.validate_every:
        most = expert.config.checkpoint.validate_rows
        sources = [(spec, expert_configs.validation_source(spec, run.source, most)) for spec in expert.specs]
        validation = _validation_rows([_prepare(run, expert, spec, own) for spec, own in sources])
    data: dict[str, Any] = {
        "data_seed": run.source.seed,
        "truncate": run.source.truncate,
        "faithful": list(original.row_switches(run.source.faithful)),
        "rows": len(prompts),
        "max_prompt": expert.lengths.prompt,
        "max_answer": expert.lengths.answer,
    }
    if not run.tokenizer.input_eos:
        data["input_eos"] = False
    if run.dtype is not None:
        data["dtype"] = run.dtype
    if len(expert.specs) > 1:
        data["tasks"] = [spec.id for spec in expert.specs]
    return TrainingJob(
        id=expert.id,
        prompts=prompts,
        targets=targets,
        config=expert.config_for(len(prompts)),
        validation=validation,
        datasets=tuple(sorted({spec.dataset for spec in expert.specs})),
        data=data,
        counts=row_counts.add_counts(
            each.counts or RowCounts(len(each.labels), len(each.labels)) for each in rows
        ),
        losses=token_losses.add_losses(each.losses for each in rows),
    )


def is_trained(library: Library, job: TrainingJob, base: Base) -> bool:
    """Tells whether the library has this very expert.

    A key that its recipe lacks had its default: it was trained before the key existed.

    Raises:
        UserError: the library has an expert of this name that was trained otherwise.
    """
    if job.id not in library.ids():
        return False
    spec, defaults = library.spec(job.id), configs.recipe_defaults()
    differing = [
        name for name, value in job.recipe.items() if spec.recipe.get(name, defaults.get(name)) != value
    ]
    if spec.base != base.fingerprint:
        differing.append("base")
    if differing:
        raise UserError(
            f"Expected {job.id!r} to be new in the library at {str(library.root)!r}, got an expert there "
            f"with another {' and '.join(differing)}. "
            "Fix: remove it with `elm experts remove`, or name another directory."
        )
    return True


def _prepare(run: Run, expert: ExpertTrainConfig, spec: TaskSpec, source: Source) -> TokenizedRows:
    return task_rows.tokenize_task(task_rows.load_examples(spec, source), run.tokenizer, expert.lengths)


def _join(lists: Sequence[RaggedTokens]) -> RaggedTokens | JoinedTokens:
    return lists[0] if len(lists) == 1 else JoinedTokens(lists)


def _validation_rows(tasks: Sequence[TokenizedRows]) -> ValidationRows:
    """Returns the rows of tasks together; accuracy needs choices in all of them."""
    ranked = all((each.labels >= 0).all() and len(each.choices) for each in tasks)
    choices = [tokenized_rows.get_choices(each, row) for each in tasks for row in range(len(each.labels))]
    labels = np.concatenate([each.labels for each in tasks]).tolist()
    return ValidationRows(
        _join([each.inputs for each in tasks]),
        _join([each.targets for each in tasks]),
        choices if ranked else None,
        labels if ranked else None,
    )
