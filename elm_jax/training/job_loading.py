"""Loading of jobs: the rows of an expert, rendered and tokenised, and whether the library has it already."""

import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from elm_jax.data import identity, task_rows, token_losses, tokenized_rows
from elm_jax.data.ragged import JoinedTokens, RaggedTokens
from elm_jax.data.tokenized_rows import TokenizedRows
from elm_jax.errors import UserError
from elm_jax.experts.library import Library
from elm_jax.records import VOCABULARY, RowCounts, TaskSpec
from elm_jax.session.workspace import Run
from elm_jax.tasks import original, row_counts
from elm_jax.tasks.data_source import Source
from elm_jax.training import config as configs
from elm_jax.training import expert_configs
from elm_jax.training.expert_configs import ExpertTrainConfig
from elm_jax.training.jobs import TrainingJob, ValidationRows
from elm_jax.weights.base_model import Base

MOST_NAMED = 5  # experts in an error
OPTIONAL_RECIPE_KEYS = ("answers", "input_eos", "dtype")
"""Keys that a recipe has only where their values are not the usual ones."""


def load_job(run: Run, expert: ExpertTrainConfig) -> TrainingJob:
    """Renders and tokenises the rows of an expert, those to validate it on too."""
    source = expert_configs.training_source(expert, run.source)
    examples = [task_rows.load_examples(spec, source) for spec in expert.specs]
    rows = [task_rows.tokenize_task(own, run.tokenizer, expert.lengths) for own in examples]
    pairs = [(each.inputs, each.targets) for each in rows]
    takes_each = expert.config.answers == "each"
    if takes_each:
        pairs += [
            tokenized_rows.pair_extra_gold_answers(each, run.tokenizer, expert.lengths) for each in rows
        ]
    prompts, targets = (join_rows(lists) for lists in zip(*pairs, strict=True))
    wrong = None
    if expert.config.loss.needs_choices:
        tasks = zip(expert.specs, rows, strict=True)
        wrong = [choices for spec, own in tasks for choices in _wrong_choices(spec, own)]
        wrong += [()] * (len(prompts) - len(wrong))  # of other answers, which are pairs of their own
    validation = None
    if expert.config.checkpoint.validate_every:
        most = expert.config.checkpoint.validate_rows
        sources = [(spec, expert_configs.validation_source(spec, run.source, most)) for spec in expert.specs]
        validation = _validation_rows([_prepare(run, expert, spec, own) for spec, own in sources])
    data: dict[str, Any] = {
        "data_seed": run.source.seed,
        "truncate": run.source.truncate,
        "faithful": list(original.list_row_switches(run.source.faithful)),
        "rows": len(prompts),
        "max_prompt": expert.lengths.prompt,
        "max_answer": expert.lengths.answer,
        VOCABULARY: run.tokenizer.fingerprint,
        identity.ROW_IDENTITIES_KEY: {
            spec.id: identity.identify_texts(spec, source, own).to_json()
            for spec, own in zip(expert.specs, examples, strict=True)
        },
    }
    if takes_each:
        data["answers"] = "each"
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
        losses=token_losses.sum_tokenization_reports(each.losses for each in rows),
        wrong=wrong,
    )


def list_trained(
    library: Library, jobs: Sequence[TrainingJob], base: Base, *, restart: bool = False
) -> list[str]:
    """Returns the ids of the experts that the library has already; none if all are to be trained anew.

    Raises:
        UserError: the library has experts of these names that were trained otherwise, or on other rows.
    """
    if restart:
        return []
    present = [job for job in jobs if job.id in library]
    keys = {job.id: _find_other_keys(library, job, base) for job in present}
    rows = {job.id: identity.describe_all_changes(library.spec(job.id).recipe, job.recipe) for job in present}
    ids = [job.id for job in present if keys[job.id] or rows[job.id]]
    if ids:
        which = repr(ids[0]) if len(ids) == 1 else f"{len(ids)} experts"
        other = list(dict.fromkeys(name for expert in ids for name in keys[expert]))
        problems = [f"with another {' and '.join(other)}"] if other else []
        problems += [
            f"{expert!r} on other rows: {rows[expert]} differ from when this expert was trained"
            for expert in ids[:MOST_NAMED]
            if rows[expert]
        ]
        command = " ".join(["elm experts remove", *map(shlex.quote, ids[:MOST_NAMED])])
        rest = " …" * (len(ids) > MOST_NAMED)
        raise UserError(
            f"Expected {which} to be new in the library at {str(library.root)!r}, got what was trained "
            f"{'; '.join(problems)}. Fix: {command}{rest}, give --restart to delete and train them anew, or "
            "name another directory."
        )
    return [job.id for job in present]


def is_trained(library: Library, job: TrainingJob, base: Base) -> bool:
    """Tells whether the library has this very expert; raises as `list_trained` does."""
    return bool(list_trained(library, [job], base))


def _find_other_keys(library: Library, job: TrainingJob, base: Base) -> list[str]:
    """Returns the keys of the recipe, beside what rows are, by which the library's expert is another.

    A key that its recipe lacks had its default: it was trained before the key existed. Then of its vocabulary
    and of what its rows hold nothing is known.
    """
    spec, defaults = library.spec(job.id), configs.recipe_defaults()
    now = identity.drop_identity(job.recipe)
    if VOCABULARY not in spec.recipe:
        now.pop(VOCABULARY, None)
    now = {name: None for name in OPTIONAL_RECIPE_KEYS if name in spec.recipe} | now
    differing = [name for name, value in now.items() if spec.recipe.get(name, defaults.get(name)) != value]
    return differing if spec.base == base.fingerprint else [*differing, "base"]


def _prepare(run: Run, expert: ExpertTrainConfig, spec: TaskSpec, source: Source) -> TokenizedRows:
    return task_rows.tokenize_task(task_rows.load_examples(spec, source), run.tokenizer, expert.lengths)


def _wrong_choices(spec: TaskSpec, rows: TokenizedRows) -> list[list[np.ndarray]]:
    """Returns the choices of every row but the right one."""
    found = []
    for row, label in enumerate(rows.labels.tolist()):
        choices = tokenized_rows.get_choices(rows, row)
        if label < 0 or not len(choices):
            raise UserError(
                f"Expected answer choices with the target among them in every row of {spec.id!r}, for "
                f"T-Few's loss, got row {rows.row_ids[row]!r} without. Fix: set UNLIKELY_LOSS and MC_LOSS "
                "to 0."
            )
        found.append([choice for number, choice in enumerate(choices) if number != label])
    return found


def join_rows(lists: Sequence[RaggedTokens]) -> RaggedTokens | JoinedTokens:
    """Returns the rows of several tasks, one after the other."""
    return lists[0] if len(lists) == 1 else JoinedTokens(lists)


def _validation_rows(tasks: Sequence[TokenizedRows]) -> ValidationRows:
    """Returns the rows of tasks together; accuracy needs choices in all of them."""
    ranked = all((each.labels >= 0).all() and len(each.choices) for each in tasks)
    choices = [tokenized_rows.get_choices(each, row) for each in tasks for row in range(len(each.labels))]
    labels = np.concatenate([each.labels for each in tasks]).tolist()
    return ValidationRows(
        join_rows([each.inputs for each in tasks]),
        join_rows([each.targets for each in tasks]),
        choices if ranked else None,
        labels if ranked else None,
    )
