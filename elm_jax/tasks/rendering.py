"""Rendering: a task's rows through its template, as prompted examples."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from elm_jax.errors import UserError
from elm_jax.prompting.render import Renderings, render
from elm_jax.prompting.templates import Template
from elm_jax.records import TaskSpec
from elm_jax.tasks import original
from elm_jax.tasks.data_source import Source, get_split
from elm_jax.tasks.raw_rows import load_rows
from elm_jax.tasks.specs import get_spec
from elm_jax.tasks.task_templates import find_template, get_truncate_length


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
    spec, source = get_spec(task), source or Source()
    if split is not None:
        source = replace(source, splits={**source.splits, spec.dataset: split})
    template = find_template(spec, source.templates_dir)
    return render_rows(spec, load_rows(spec, source), template, source)


def render_rows(
    spec: TaskSpec, rows: Sequence[Mapping[str, Any]], template: Template, source: Source
) -> Renderings:
    """Returns the rendered rows that `raw_rows.load_rows` gave; several prompts may share these.

    Raises:
        UserError: If no row renders.
    """
    renderings = render_range(spec, rows, template, source)
    if not renderings.examples:
        raise UserError(describe_no_examples(spec, source, len(rows)))
    return renderings


def render_range(
    spec: TaskSpec, rows: Iterable[Mapping[str, Any]], template: Template, source: Source
) -> Renderings:
    """Returns some of a task's rows rendered; it may be that none of these renders."""
    keep_empty = "empty_renderings" in original.parse_switches(source.faithful)
    return render(rows, template, truncate=get_truncate_length(spec, source), keep_empty=keep_empty)


def describe_no_examples(spec: TaskSpec, source: Source, rows: int) -> str:
    """Returns what is wrong with a task of which no row renders."""
    return (
        f"Expected rows that the template of {spec.id!r} applies to, got none among the {rows:,} rows of the "
        f"{get_split(spec, source)} split. Fix: choose another split, or see `elm tasks show`."
    )
