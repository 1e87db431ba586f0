"""Rendering: a task's rows through its template, as prompted examples."""

from collections.abc import Mapping, Sequence
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

CONTENT_FREE_TEXTS = ("N/A", "[MASK]", "")


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


def render_content_free(spec: TaskSpec, source: Source) -> list[str]:
    """Returns inputs of a task without content: its first row's, each text of the row replaced by another.

    These are "N/A", "[MASK]" and the empty text (Zhao et al. 2021, arXiv 2102.09690).

    Raises:
        UserError: If there is no row, or if the template does not apply to a row of such texts.
    """
    template, rows = find_template(spec, source.templates_dir), load_rows(spec, replace(source, limit=1))
    found = []
    for text in CONTENT_FREE_TEXTS if rows else ():
        row = {name: text if isinstance(value, str) else value for name, value in rows[0].items()}
        parts = template.parts(row, get_truncate_length(spec, source))
        found += parts[:1] if len(parts) > 1 else ()
    if not found:
        raise UserError(
            f"Expected a template of {spec.id!r} that applies to a row whose texts are {CONTENT_FREE_TEXTS}, "
            "got none. Fix: choose another way to score."
        )
    return found


def render_rows(
    spec: TaskSpec, rows: Sequence[Mapping[str, Any]], template: Template, source: Source
) -> Renderings:
    """Returns the rendered rows that `raw_rows.load_rows` gave; several prompts may share these.

    Raises:
        UserError: If no row renders.
    """
    keep_empty = "empty_renderings" in original.parse_switches(source.faithful)
    renderings = render(rows, template, truncate=get_truncate_length(spec, source), keep_empty=keep_empty)
    if not renderings.examples:
        split = get_split(spec, source)
        raise UserError(
            f"Expected rows that the template of {spec.id!r} applies to, got none among the {len(rows):,} "
            f"rows of the {split} split. Fix: choose another split, or see `elm tasks show`."
        )
    return renderings
