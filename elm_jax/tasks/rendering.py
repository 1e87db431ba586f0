"""Rendering: a task's rows through its template, as prompted examples."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from elm_jax.errors import UserError
from elm_jax.prompting.render import Renderings, render
from elm_jax.prompting.templates import Template
from elm_jax.records import TaskSpec
from elm_jax.tasks import original
from elm_jax.tasks.data_source import Source, split_of
from elm_jax.tasks.raw_rows import load_rows
from elm_jax.tasks.specs import spec_of
from elm_jax.tasks.task_templates import template_for, truncation


def examples(task: TaskSpec | str, split: str | None = None, *, source: Source | None = None) -> Renderings:
    """Returns a task's prompted examples of one split: its rows through its template.

    Args:
        task: A spec or an id.
        split: The split; default: the one that the source or the spec names.
        source: Where rows and templates come from, and how many rows are taken.

    Returns:
        The `examples`, each with its input, answer choices, target and row id, and how many rows gave none.

    Raises:
        UserError: If a directory, file or column is missing, or if no row renders at all.
    """
    spec, source = spec_of(task), source or Source()
    if split is not None:
        source = replace(source, splits={**source.splits, spec.dataset: split})
    template = template_for(spec, source.templates_dir)
    return render_rows(spec, load_rows(spec, source), template, source)


def render_rows(
    spec: TaskSpec, rows: Sequence[Mapping[str, Any]], template: Template, source: Source
) -> Renderings:
    """Returns the rendered rows that `raw_rows.load_rows` gave; several prompts may share these.

    Raises:
        UserError: If no row renders.
    """
    keep_empty = "empty_renderings" in original.parse_switches(source.faithful)
    renderings = render(rows, template, truncate=truncation(spec, source), keep_empty=keep_empty)
    if not renderings.examples:
        split = split_of(spec, source)
        raise UserError(
            f"Expected rows that the template of {spec.id!r} applies to, got none among the {len(rows):,} "
            f"rows of the {split} split. Fix: choose another, or look at the template with `elm tasks show`."
        )
    return renderings
