"""Rendering: a task's rows through its template, as prompted examples."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from elm_jax.errors import UserError
from elm_jax.prompting.render import Renderings, render
from elm_jax.prompting.templates import Template
from elm_jax.records import RowCounts, TaskSpec, UnusedRow
from elm_jax.tasks import original
from elm_jax.tasks.data_source import Source, get_split
from elm_jax.tasks.datasets import all_datasets
from elm_jax.tasks.raw_rows import iterate_rows
from elm_jax.tasks.row_counts import describe_counts
from elm_jax.tasks.specs import get_spec, is_mini_task, is_ranked
from elm_jax.tasks.task_templates import find_template, get_truncate_length

CONTENT_FREE_TEXTS = ("N/A", "[MASK]", "")


def examples(task: TaskSpec | str, split: str | None = None, *, source: Source | None = None) -> Renderings:
    """Returns a task's prompted examples of one split: its rows through its template.

    Args:
        task: A spec or an id.
        split: The split; default: the one that the source or the spec names.
        source: Where rows and templates come from, and how many rows are taken.

    Returns:
        The examples, each with its input, answer choices, target and row id, and what became of the others.

    Raises:
        UserError: If a directory, file or column is missing, if no row can be used, or if one cannot and the
            source says that it is to be refused.
    """
    spec, source = get_spec(task), source or Source()
    if split is not None:
        source = replace(source, splits={**source.splits, spec.dataset: split})
    template = find_template(spec, source.templates_dir)
    return render_rows(spec, iterate_rows(spec, source), template, source)


def render_content_free(spec: TaskSpec, source: Source) -> list[str]:
    """Returns inputs of a task without content: its first row's, each text of the row replaced by another.

    These are "N/A", "[MASK]" and the empty text (Zhao et al. 2021, arXiv 2102.09690).

    Raises:
        UserError: If there is no row, or if the template does not apply to a row of such texts.
    """
    template = find_template(spec, source.templates_dir)
    first = next(iterate_rows(spec, replace(source, limit=1)), {})
    found = []
    for text in CONTENT_FREE_TEXTS if first else ():
        row = {name: text if isinstance(value, str) else value for name, value in first.items()}
        parts = template.parts(row, get_truncate_length(spec, source))
        found += parts[:1] if len(parts) > 1 else ()
    if not found:
        raise UserError(
            f"Expected a template of {spec.id!r} that applies to a row whose texts are {CONTENT_FREE_TEXTS}, "
            "got none. Fix: choose another way to score."
        )
    return found


def render_rows(
    spec: TaskSpec, rows: Iterable[Mapping[str, Any]], template: Template, source: Source
) -> Renderings:
    """Returns the rendered rows that `raw_rows.iterate_rows` gave; several prompts may share these.

    Raises:
        UserError: If no row can be used, or if one cannot and the source says that it is to be refused.
    """
    renderings = render_part(spec, rows, template, source, limit=source.limit, is_part=False)
    require_usable(spec, renderings.counts, renderings.unused, source)
    return renderings


def render_part(
    spec: TaskSpec,
    rows: Iterable[Mapping[str, Any]],
    template: Template,
    source: Source,
    *,
    limit: int | None = None,
    is_part: bool = True,
) -> Renderings:
    """Returns some of a task's rows rendered, of which it may be that none can be used.

    Args:
        spec: The task.
        rows: The rows.
        template: Its template.
        source: Where they come from.
        limit: Examples at most.
        is_part: Whether there are other rows, which may have a column that all of these lack.
    """
    dataset = all_datasets().get(spec.dataset)
    return render(
        rows,
        template,
        truncate=get_truncate_length(spec, source),
        keep_empty="empty_renderings" in original.parse_switches(source.faithful),
        is_ranked=is_ranked(spec),
        label=dataset.label if dataset and not is_mini_task(spec) else None,
        limit=limit,
        is_part=is_part,
    )


def require_usable(spec: TaskSpec, counts: RowCounts, unused: Sequence[UnusedRow], source: Source) -> None:
    """Raises if no row of a task can be used, or if one cannot and the source wants it refused."""
    split = get_split(spec, source)
    first = f" The first: {unused[0].message}" if unused else ""
    if not counts.used:
        raise UserError(
            f"Expected rows of {spec.id!r} that can be used, got none among the {counts.read:,} rows of "
            f"the {split} split. Fix: choose another split, or correct the rows.{first}"
        )
    if counts.left_out and source.on_bad_row == "refuse":
        raise UserError(
            f"Expected rows of {spec.id!r} that can all be used, got {describe_counts(counts)} in the "
            f"{split} split. Fix: correct them, or leave them out with --on-bad-row leave-out.{first}"
        )
