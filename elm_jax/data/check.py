"""`elm tasks check`: what is wrong with a task before anything is trained on it, in plain sentences."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elm_jax import names, storage
from elm_jax.data import identity
from elm_jax.errors import UserError
from elm_jax.prompting import limits
from elm_jax.prompting.templates import Rendered, Template
from elm_jax.records import TaskSpec
from elm_jax.tasks import data_source, raw_rows, task_templates
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.tokenizers.sentencepiece import Vocabulary

KINDS = ("columns", "rows", "rendering", "empty", "outside", "one-sided", "over-long", "duplicates")
"""What can be found.

columns     the template reads a column that the dataset, or some of its rows, have not
rows        rows cannot be read, or the template applies to none of them
rendering   the template fails on rows
empty       rows render to an empty input or target
outside     targets that are none of their choices
one-sided   the right choice is nearly always the same one
over-long   texts that are cut: by the template's limit of characters, or by the limits of tokens
duplicates  inputs that come more than once
"""
ONE_SIDED = 0.95
ENOUGH = 20  # labelled rows, for a share of them to tell anything


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    kind: str  # one of KINDS
    says: str


@dataclass(frozen=True)
class Checked:
    """What was found in one task."""

    task: str
    split: str
    rows: int
    applies: int  # rows that give an input and a target
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class _Row:
    """One row as the template made it."""

    id: str
    rendered: Rendered
    whole: Rendered  # without the limit of characters


def check(
    tasks: Sequence[TaskSpec],
    source: Source,
    *,
    pieces: Vocabulary | None = None,
    lengths: Lengths | None = None,
) -> list[Checked]:
    """Looks through all rows of each task; with a vocabulary, tokens are counted too."""
    checked = []
    before: tuple[str, list[dict[str, Any]]] = ("", [])  # prompts of a dataset share its rows
    for spec in tasks:
        split = data_source.split_of(spec, source)
        try:
            template = task_templates.template_for(spec, source.templates_dir)
        except UserError as error:
            checked.append(Checked(spec.id, split, 0, 0, (Finding("columns", str(error)),)))
            continue
        try:
            told = identity.of_split(spec, source)
            key = storage.fingerprint(told)
            if before[0] != key:
                before = (key, raw_rows.load_rows(spec, source))
        except UserError as error:
            checked.append(Checked(spec.id, split, 0, 0, (Finding("rows", str(error)),)))
            continue
        truncate = task_templates.truncation(spec, source)
        checked.append(_checked(spec, split, before[1], template, truncate, pieces, lengths or Lengths()))
    return checked


def _checked(
    spec: TaskSpec,
    split: str,
    rows: Sequence[Mapping[str, Any]],
    template: Template,
    truncate: int | None,
    pieces: Vocabulary | None,
    lengths: Lengths,
) -> Checked:
    findings = [*_columns(rows, template)]
    made, failed = [], []
    for row in rows:
        name = str(row["row_id"])
        if not template.columns <= row.keys():
            continue
        try:
            rendered = template.render(row, truncate, row_id=name)
            long = truncate is not None and limits.size_of(row) > truncate
            whole = template.render(row, None, row_id=name) if long else rendered
        except UserError as error:
            failed.append(str(error))
            continue
        if rendered is not None and whole is not None:
            made.append(_Row(name, rendered, whole))
    if failed:
        findings.append(
            Finding("rendering", f"{_rows(len(failed))} cannot be rendered. The first: {failed[0]}")
        )
    whole = [row for row in made if row.rendered.input and row.rendered.target]
    empty = [row for row in made if not (row.rendered.input and row.rendered.target)]
    if empty:
        lack = "input" if not empty[0].rendered.input else "target"
        said = f"{_rows(len(empty), 'renders', 'render')} to an empty {lack} ({empty[0].id} is the first)."
        findings.append(Finding("empty", said))
    if not whole and not findings:
        findings.append(Finding("rows", f"The template applies to none of the {len(rows):,} rows."))
    findings += [*_outside(whole), *_one_sided(whole), *_cut(whole, truncate), *_duplicates(whole)]
    if pieces is not None:
        findings += _too_many_tokens(whole, pieces, lengths)
    return Checked(spec.id, split, len(rows), len(whole), tuple(findings))


def _columns(rows: Sequence[Mapping[str, Any]], template: Template) -> Iterator[Finding]:
    for column in sorted(template.columns):
        lacking = [row for row in rows if column not in row]
        if lacking:
            have = ", ".join(repr(name) for name in lacking[0] if name != "row_id")
            yield Finding(
                "columns",
                f"The template reads column {column!r}, which {len(lacking):,} of {_rows(len(rows))} lack. "
                f"The first, {lacking[0]['row_id']}, has only these columns: {have}.",
            )


def _outside(rows: Sequence[_Row]) -> Iterator[Finding]:
    outside = [
        row for row in rows if row.rendered.choices and row.rendered.target not in row.rendered.choices
    ]
    if outside:
        first = outside[0].rendered
        choices = ", ".join(repr(choice) for choice in first.choices or ())
        yield Finding(
            "outside",
            f"{_rows(len(outside), 'has', 'have')} a target that is none of the choices. The first, "
            f"{outside[0].id}, has the target {_short(first.target)} and the choices {choices:.300}.",
        )


def _one_sided(rows: Sequence[_Row]) -> Iterator[Finding]:
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
        yield Finding(
            "one-sided",
            f"Choice {label + 1} is the right one in {share} of {_rows(len(labels))}: whoever always takes "
            "it needs to read nothing.",
        )


def _cut(rows: Sequence[_Row], truncate: int | None) -> Iterator[Finding]:
    cut = [row for row in rows if row.rendered != row.whole]
    if cut:
        yield Finding(
            "over-long",
            f"{_rows(len(cut), 'has', 'have')} a text of more than {truncate:,} characters, which is cut "
            f"({cut[0].id} is the first).",
        )


def _too_many_tokens(rows: Sequence[_Row], pieces: Vocabulary, lengths: Lengths) -> Iterator[Finding]:
    choices = [(row.id, choice) for row in rows for choice in row.rendered.choices or ()]
    kinds = {
        "inputs": ([(row.id, row.rendered.input) for row in rows], lengths.prompt),
        "targets": ([(row.id, row.rendered.target) for row in rows], lengths.answer),
        "choices": (choices, lengths.answer),
    }
    for kind, (texts, most) in kinds.items():
        counts = [len(ids) + 1 for ids in pieces.encode_all([text for _, text in texts])]
        long = [number for number, count in enumerate(counts) if count > most]
        if long:
            worst = max(long, key=lambda number: counts[number])
            yield Finding(
                "over-long",
                f"{len(long):,} of {len(texts):,} {kind} have more than {most} tokens and are cut; the "
                f"longest, of {texts[worst][0]}, has {counts[worst]:,}.",
            )


def _duplicates(rows: Iterable[_Row]) -> Iterator[Finding]:
    first: dict[tuple[str, tuple[str, ...] | None], _Row] = {}
    again, differ = [], 0
    for row in rows:
        before = first.setdefault((row.rendered.input, row.rendered.choices), row)
        if before is not row:
            again.append((before.id, row.id))
            differ += before.rendered.target != row.rendered.target
    if again:
        other = f", {differ:,} of them with another target" if differ else ""
        one, two = again[0]
        yield Finding(
            "duplicates",
            f"{_rows(len(again), 'has', 'have')} the input and choices of an earlier one{other} "
            f"({two} has those of {one}).",
        )


def _rows(count: int, does: str = "", do: str = "") -> str:
    """Counts rows in words, with the verb that goes with one or with several."""
    return f"{count:,} row {does}".rstrip() if count == 1 else f"{count:,} rows {do}".rstrip()


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:80] + "…")


def kinds(wanted: Iterable[str]) -> frozenset[str]:
    """Returns kinds of findings by name; an unknown one is a `UserError` with the nearest."""
    return frozenset(
        names.resolve(kind, KINDS, kind="kind of finding", where="the checks") for kind in wanted
    )


def without(checked: Sequence[Checked], allowed: frozenset[str]) -> list[Checked]:
    """Returns what was checked without the findings of the allowed kinds."""
    return [
        dataclasses.replace(each, findings=tuple(f for f in each.findings if f.kind not in allowed))
        for each in checked
    ]
