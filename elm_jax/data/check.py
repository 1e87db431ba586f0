"""`elm tasks check`: finds what is wrong with tasks before anything is trained on them.

Rows come block by block, so that memory holds one block, and some bytes of every row to find duplicates.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from elm_jax import names, storage
from elm_jax.data import identity, missing_rows, task_selection
from elm_jax.data.findings import FINDING_KINDS, REASON_KINDS, Tally, TaskFinding, format_rows
from elm_jax.data.text_findings import RowTextChecker
from elm_jax.data.token_findings import TokenizationChecker
from elm_jax.errors import RowReason, UserError
from elm_jax.frames import Records
from elm_jax.prompting.render import Renderings
from elm_jax.prompting.templates import Template
from elm_jax.records import PromptedExample, RowCounts, TaskSpec, UnusedRow
from elm_jax.tasks import data_source, raw_rows, rendering, task_templates
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.tasks.raw_rows import RawRow, RawRows
from elm_jax.tasks.row_counts import add_counts
from elm_jax.tokenizers.sentencepiece import Tokenizer

BLOCK_ROWS = 1024


@dataclass(frozen=True)
class TaskCheck:
    """What was found in one task.

    Attributes:
        task: Id of the task.
        split: The split that was read.
        rows: Rows of the split that were read.
        applies: Rows that give an input and a target.
        findings: What is wrong.
        counts: Rows that were read, used, left out and cut.
    """

    task: str
    split: str
    rows: int
    applies: int
    findings: tuple[TaskFinding, ...]
    counts: RowCounts


def check_tasks(
    tasks: task_selection.Tasks,
    source: Source | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    lengths: Lengths | None = None,
) -> Records[TaskCheck]:
    """Renders the rows of each task, as many as are used, and returns what is wrong with them.

    Args:
        tasks: Specs or names, of tasks, datasets or groups.
        source: Where rows and templates come from.
        tokenizer: Counts tokens too; default: they are not counted.
        lengths: Tokens of inputs and of targets that training keeps.

    Returns:
        What was found, a record for each task.

    Raises:
        UserError: If no task is named, a name is unknown, or a file of tasks does not parse.
    """
    checked: Records[TaskCheck] = Records()
    source = source or Source()
    specs = task_selection.select_tasks(tasks, source)
    opened: tuple[str, RawRows | None] = ("", None)  # prompts of a dataset share its rows
    missing = missing_rows.find_unreachable(specs, source)
    for spec in specs:
        try:
            template = task_templates.find_template(spec, source.templates_dir)
        except UserError as error:
            checked.append(_make_check(spec, source, [TaskFinding("columns", 0, str(error))]))
            continue
        if spec.id in missing:
            checked.append(_make_check(spec, source, [TaskFinding("rows", 0, missing[spec.id])]))
            continue
        try:
            key = storage.fingerprint(identity.identify_rows(spec, source))
            if opened[0] != key or opened[1] is None:
                opened = (key, raw_rows.open_rows(spec, source))
            checker = _TaskChecker(spec, template, source)
            if tokenizer is not None:
                checker.tokens = TokenizationChecker(tokenizer, lengths or Lengths())
            checked.append(checker.check(opened[1]))
        except UserError as error:
            checked.append(_make_check(spec, source, [TaskFinding("rows", 0, str(error))]))
    return checked


class _TaskChecker:
    """Looks at the rows of one task."""

    def __init__(self, spec: TaskSpec, template: Template, source: Source) -> None:
        self._spec, self._template, self._source = spec, template, source
        truncate = task_templates.get_truncate_length(spec, source)
        self._is_cut = truncate is not None
        self._texts = RowTextChecker(truncate)
        self.tokens: TokenizationChecker | None = None
        self._counts = RowCounts(0, 0)
        self._unused: dict[RowReason, UnusedRow] = {}
        self._lacking: dict[str, Tally[RawRow]] = {}

    def check(self, rows: RawRows) -> TaskCheck:
        """Returns what is wrong with a task.

        Raises:
            UserError: If rows cannot be read.
        """
        failure = None
        for block in self._take_blocks(rows):
            try:
                self._add(block)
            except UserError as error:  # of the template as it is, whatever the row
                failure = TaskFinding("rendering", len(block), str(error))
                break
        findings = [failure] if failure else []
        findings += self._find_left_out()
        findings += self._texts.findings(lambda place: str(next(rows.read(place, place + 1))["row_id"]))
        if self.tokens is not None:
            findings += self.tokens.findings()
        return _make_check(self._spec, self._source, findings, self._counts)

    def _take_blocks(self, rows: RawRows) -> Iterator[list[RawRow]]:
        """Yields rows until as many as the limit says are used."""
        limit = self._source.limit or rows.count
        every = raw_rows.read_in_blocks(rows, limit)
        while self._counts.used < limit:
            block = list(itertools.islice(every, min(BLOCK_ROWS, limit - self._counts.used)))
            if not block:
                return
            yield block

    def _add(self, block: Sequence[RawRow]) -> None:
        before = self._counts.read
        made = self._render(block, self._source)
        whole = made
        # A limit that works on what is written changes no row that it does not cut.
        if self._is_cut and not (self._template.own and not made.counts.cut):
            whole = self._render(block, replace(self._source, truncate=None))
        self._counts = add_counts([self._counts, made.counts])
        for unused in made.unused:
            if unused.column is None:
                self._unused.setdefault(unused.reason, unused)
        places = {str(row["row_id"]): before + at for at, row in enumerate(block)}
        self._count_lacking(block, made)
        uncut: Mapping[str, PromptedExample] = {example.row_id: example for example in whole}
        self._texts.add(
            made, [places[each.row_id] for each in made], [uncut.get(each.row_id) for each in made]
        )
        if self.tokens is not None:
            self.tokens.add(made)

    def _render(self, block: Sequence[RawRow], source: Source) -> Renderings:
        return rendering.render_part(self._spec, block, self._template, source)

    def _count_lacking(self, block: Sequence[RawRow], made: Renderings) -> None:
        """Counts rows that were left out for lacking a column."""
        columns = [row.column for row in made.unused if row.column is not None]
        used = {example.row_id for example in made} if columns else set()
        for row in block if columns else ():
            column = next((name for name in columns if name not in row), None)
            if column is not None and str(row["row_id"]) not in used:
                self._lacking.setdefault(column, Tally()).add(row)

    def _find_left_out(self) -> Iterator[TaskFinding]:
        """Yields why rows cannot be used."""
        counts, rows = Counter(self._counts.left_out), format_rows(self._counts.read)
        for column, lacking in sorted(self._lacking.items()):
            counts["missing value"] -= lacking.rows
            first = lacking.first or {}
            have = ", ".join(repr(name) for name in first if name != "row_id")
            yield TaskFinding(
                "columns",
                lacking.rows,
                f"The template reads column {column!r}, which {lacking.rows:,} of {rows} lack. The first, "
                f"{first['row_id']}, has only these columns: {have}.",
            )
        for reason, count in counts.items():
            if count and reason in REASON_KINDS:
                yield TaskFinding(REASON_KINDS[reason], count, self._describe(reason, count))
        inapplicable = counts["does not apply"]
        if not inapplicable:
            return
        if self._source.on_bad_row == "refuse":
            yield TaskFinding(
                "does-not-apply",
                inapplicable,
                f"The template does not apply to {inapplicable:,} of {rows}, which are refused.",
            )
        elif inapplicable == self._counts.read:
            yield TaskFinding("rows", inapplicable, f"The template applies to none of the {rows}.")

    def _describe(self, reason: RowReason, count: int) -> str:
        first = self._unused[reason]
        if reason in ("empty input", "empty target"):
            return f"{format_rows(count, 'renders', 'render')} to an {reason}, {first.row_id} first."
        if reason == "outside choices":
            problem = f"{format_rows(count, 'has', 'have')} a target that is none of the choices"
        else:
            problem = f"{format_rows(count)} cannot be rendered"
        return f"{problem}. The first: {first.message}"


def _make_check(
    spec: TaskSpec, source: Source, findings: Iterable[TaskFinding], counts: RowCounts | None = None
) -> TaskCheck:
    counts = counts or RowCounts(0, 0)
    return TaskCheck(
        spec.id,
        data_source.get_split(spec, source),
        counts.read,
        counts.used + counts.left_out.get("outside choices", 0),
        tuple(findings),
        counts,
    )


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
