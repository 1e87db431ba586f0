"""`elm tasks check`: finds what is wrong with tasks before anything is trained on them."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elm_jax import names, storage
from elm_jax.data import identity, token_findings
from elm_jax.data.findings import FINDING_KINDS, RenderedRow, TaskFinding, format_rows
from elm_jax.errors import UserError
from elm_jax.prompting.templates import Template
from elm_jax.records import TaskSpec
from elm_jax.tasks import data_source, raw_rows, task_templates
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.tokenizers.sentencepiece import Tokenizer

ONE_SIDED = 0.95
ENOUGH = 20  # labelled rows, for their share to mean anything


@dataclass(frozen=True)
class TaskCheck:
    """What was found in one task.

    Attributes:
        task: Id of the task.
        split: The split that was read.
        rows: Rows of the split.
        applies: Rows that give an input and a target.
        findings: What is wrong.
    """

    task: str
    split: str
    rows: int
    applies: int
    findings: tuple[TaskFinding, ...]


def check_tasks(
    tasks: Sequence[TaskSpec],
    source: Source,
    *,
    tokenizer: Tokenizer | None = None,
    lengths: Lengths | None = None,
) -> list[TaskCheck]:
    """Renders all rows of each task and returns what is wrong with them.

    Args:
        tasks: The tasks.
        source: Where rows and templates come from.
        tokenizer: Counts tokens too; default: they are not counted.
        lengths: Tokens of inputs and of targets that training keeps.
    """
    checked = []
    loaded: tuple[str, list[dict[str, Any]]] = ("", [])  # prompts of a dataset share its rows
    for spec in tasks:
        split = data_source.get_split(spec, source)
        try:
            template = task_templates.find_template(spec, source.templates_dir)
        except UserError as error:
            checked.append(TaskCheck(spec.id, split, 0, 0, (TaskFinding("columns", 0, str(error)),)))
            continue
        try:
            key = storage.fingerprint(identity.identify_rows(spec, source))
            if loaded[0] != key:
                loaded = (key, raw_rows.load_rows(spec, source))
        except UserError as error:
            checked.append(TaskCheck(spec.id, split, 0, 0, (TaskFinding("rows", 0, str(error)),)))
            continue
        truncate = task_templates.get_truncate_length(spec, source)
        checked.append(
            _check_rows(spec, split, loaded[1], template, truncate, tokenizer, lengths or Lengths())
        )
    return checked


def _check_rows(
    spec: TaskSpec,
    split: str,
    rows: Sequence[Mapping[str, Any]],
    template: Template,
    truncate: int | None,
    tokenizer: Tokenizer | None,
    lengths: Lengths,
) -> TaskCheck:
    findings = [*_find_missing_columns(rows, template)]
    rendered_rows, errors = [], []
    for row in rows:
        row_id = str(row["row_id"])
        if not template.columns <= row.keys():
            continue
        try:
            rendered = template.render(row, truncate, row_id=row_id)
            uncut = rendered if truncate is None else template.render(row, None, row_id=row_id)
        except UserError as error:
            errors.append(str(error))
            continue
        if rendered is not None and uncut is not None:
            rendered_rows.append(RenderedRow(row_id, rendered, uncut))
    if errors:
        findings.append(
            TaskFinding(
                "rendering",
                len(errors),
                f"{format_rows(len(errors))} cannot be rendered. The first: {errors[0]}",
            )
        )
    applied = [row for row in rendered_rows if row.rendered.input and row.rendered.target]
    empty = [row for row in rendered_rows if not (row.rendered.input and row.rendered.target)]
    if empty:
        lack = "input" if not empty[0].rendered.input else "target"
        message = f"{format_rows(len(empty), 'renders', 'render')} to an empty {lack}, {empty[0].id} first."
        findings.append(TaskFinding("empty", len(empty), message))
    if not applied and not findings:
        findings.append(
            TaskFinding("rows", len(rows), f"The template applies to none of the {len(rows):,} rows.")
        )
    findings += [*_find_outside(applied), *_find_one_sided(applied)]
    findings += [*_find_cut(applied, truncate), *_find_duplicates(applied)]
    findings += token_findings.find_choice_faults(applied)
    findings += token_findings.find_unicode_forms(applied)
    if tokenizer is not None:
        findings += token_findings.find_token_losses(applied, tokenizer, lengths)
    return TaskCheck(spec.id, split, len(rows), len(applied), tuple(findings))


def _find_missing_columns(rows: Sequence[Mapping[str, Any]], template: Template) -> Iterator[TaskFinding]:
    for column in sorted(template.columns):
        lacking = [row for row in rows if column not in row]
        if lacking:
            have = ", ".join(repr(name) for name in lacking[0] if name != "row_id")
            yield TaskFinding(
                "columns",
                len(lacking),
                f"The template reads column {column!r}, which {len(lacking):,} of {format_rows(len(rows))} "
                f"lack. The first, {lacking[0]['row_id']}, has only these columns: {have}.",
            )


def _find_outside(rows: Sequence[RenderedRow]) -> Iterator[TaskFinding]:
    outside = [
        row for row in rows if row.rendered.choices and row.rendered.target not in row.rendered.choices
    ]
    if outside:
        first = outside[0].rendered
        choices = ", ".join(repr(choice) for choice in first.choices or ())
        yield TaskFinding(
            "outside",
            len(outside),
            f"{format_rows(len(outside), 'has', 'have')} a target that is none of the choices. The first, "
            f"{outside[0].id}, has the target {_shorten(first.target)} and the choices {choices:.300}.",
        )


def _find_one_sided(rows: Sequence[RenderedRow]) -> Iterator[TaskFinding]:
    labels = [
        row.rendered.choices.index(row.rendered.target)
        for row in rows
        if row.rendered.choices and len(row.rendered.choices) > 1
        if row.rendered.target in row.rendered.choices
    ]
    if len(labels) < 2:
        return
    label, count = Counter(labels).most_common(1)[0]
    if count == len(labels) or (len(labels) >= ENOUGH and count / len(labels) >= ONE_SIDED):
        share = "all" if count == len(labels) else f"{count / len(labels):.0%}"
        yield TaskFinding(
            "one-sided",
            len(labels),
            f"Choice {label + 1} is the right one in {share} of {format_rows(len(labels))}: always "
            "choosing it needs no reading.",
        )


def _find_cut(rows: Sequence[RenderedRow], truncate: int | None) -> Iterator[TaskFinding]:
    cut = [row for row in rows if row.rendered != row.uncut]
    if cut:
        yield TaskFinding(
            "over-long",
            len(cut),
            f"{format_rows(len(cut), 'has', 'have')} a text of more than {truncate:,} characters, which is "
            f"cut ({cut[0].id} is the first).",
        )


def _find_duplicates(rows: Iterable[RenderedRow]) -> Iterator[TaskFinding]:
    first: dict[tuple[str, tuple[str, ...] | None], RenderedRow] = {}
    repeated, differ = [], 0
    for row in rows:
        before = first.setdefault((row.rendered.input, row.rendered.choices), row)
        if before is not row:
            repeated.append((before.id, row.id))
            differ += before.rendered.target != row.rendered.target
    if repeated:
        other = f", {differ:,} of them with another target" if differ else ""
        one, two = repeated[0]
        yield TaskFinding(
            "duplicates",
            len(repeated),
            f"{format_rows(len(repeated), 'has', 'have')} the input and choices of an earlier one{other} "
            f"({two} has those of {one}).",
        )


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:80] + "…")


def parse_kinds(kinds: Iterable[str]) -> frozenset[str]:
    """Returns kinds of findings that are named.

    Raises:
        UserError: If there is no such kind.
    """
    return frozenset(
        names.resolve(kind, FINDING_KINDS, kind="kind of finding", where="the checks") for kind in kinds
    )


def drop_findings(checks: Sequence[TaskCheck], kinds: frozenset[str]) -> list[TaskCheck]:
    """Returns checks without the findings of some kinds."""
    return [
        dataclasses.replace(each, findings=tuple(f for f in each.findings if f.kind not in kinds))
        for each in checks
    ]
