"""Entries: experts to be trained, each with its rows and with what will be noted of how it was made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from elm_jax.data import prepared, ragged, task_rows
from elm_jax.data.prepared import Prepared
from elm_jax.errors import UserError
from elm_jax.experts.library import Library
from elm_jax.records import TaskSpec
from elm_jax.session.workspace import Run
from elm_jax.tasks import data_source, original
from elm_jax.training import config
from elm_jax.training.config import Budget, Course
from elm_jax.training.jobs import Held, Job
from elm_jax.weights.elm import Base


@dataclass(frozen=True)
class Entry:
    """An expert to be trained, and what will be noted of how."""

    job: Job
    recipe: Mapping[str, Any]
    datasets: tuple[str, ...]


def entry_of(run: Run, course: Course, budget: Budget, seed: int) -> Entry:
    """Returns the rows of a course and what will be noted of its training."""
    source = config.source_of(course, run.source)
    made = [_prepared(run, course, spec, source) for spec in course.specs]
    prompts, targets = _joined([each.inputs for each in made]), _joined([each.targets for each in made])
    held = None
    if budget.validate_every:
        rows = budget.validate_rows
        out = [(spec, config.held_out(spec, run.source, rows)) for spec in course.specs]
        held = _held([_prepared(run, course, spec, where) for spec, where in out])
    job = Job(
        id=course.id,
        prompts=prompts,
        targets=targets,
        steps=course.steps_on(len(prompts)),
        rate=course.rate,
        seed=seed,
        batch_size=course.batch_size,
        schedule=budget.schedule,
        warmup=budget.warmup,
        held=held,
    )
    recipe = {
        **{
            name: getattr(job, name) for name in ("steps", "rate", "seed", "batch_size", "schedule", "warmup")
        },
        **{name: getattr(budget, name) for name in ("optimizer", "clip", "z_loss", "label_smoothing")},
        "kind": budget.kind,
        # As JSON gives them back, so that they equal themselves when the run is given again.
        "options": {
            name: list(value) if isinstance(value, tuple) else value for name, value in budget.options.items()
        },
        "dropout": budget.dropout,
        "keep": budget.keep,
        "data_seed": run.source.seed,
        "truncate": run.source.truncate,
        "faithful": list(original.row_switches(run.source.faithful)),
        "rows": len(prompts),
        "max_prompt": course.lengths.prompt,
        "max_answer": course.lengths.answer,
    }
    if not run.pieces.input_eos:
        recipe["input_eos"] = False
    if run.dtype is not None:
        recipe["dtype"] = run.dtype
    if len(course.specs) > 1:
        recipe["tasks"] = [spec.id for spec in course.specs]
    return Entry(job, recipe, tuple(sorted({spec.dataset for spec in course.specs})))


def _prepared(run: Run, course: Course, spec: TaskSpec, source: data_source.Source) -> Prepared:
    return task_rows.prepare(task_rows.examples(spec, source), run.pieces, course.lengths)


def _joined(tokens: Sequence[ragged.TokenLists]) -> ragged.TokenLists:
    if len(tokens) == 1:
        return tokens[0]
    return ragged.of_tokens(row for each in tokens for row in each)


def _held(made: Sequence[Prepared]) -> Held:
    """Returns prepared rows to judge an expert on; its accuracy is known where every row has its choices."""
    ranked = all((each.labels >= 0).all() and len(each.choices) for each in made)
    choices = [prepared.choices_of(each, row) for each in made for row in range(len(each.labels))]
    labels = np.concatenate([each.labels for each in made]).tolist()
    return Held(
        _joined([each.inputs for each in made]),
        _joined([each.targets for each in made]),
        choices if ranked else None,
        labels if ranked else None,
    )


def is_done(library: Library, entry: Entry, base: Base) -> bool:
    """Says whether the library has this very expert; one of the same name but another recipe is an error."""
    if entry.job.id not in library.ids():
        return False
    spec = library.spec(entry.job.id)
    differs = [name for name, value in entry.recipe.items() if spec.recipe.get(name) != value]
    if spec.base != base.fingerprint:
        differs.append("base")
    if differs:
        raise UserError(
            f"Expert {entry.job.id!r} is in the library at {str(library.root)!r} already, with another "
            f"{' and '.join(differs)}. Remove it with `elm experts remove`, or name another directory."
        )
    return True
