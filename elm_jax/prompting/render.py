"""Renderings: a dataset's rows as the model sees them through one template.

Everything that turns rows into prompted examples calls `render`, or `render_row` for one of them. A row that
cannot be used is left out and counted; a column that no row has is an error.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsIndex, overload

from elm_jax.errors import RowError, RowReason, UserError
from elm_jax.frames import to_frame
from elm_jax.prompting import isolation
from elm_jax.prompting.templates import MAX_VALUE_CHARACTERS, Rendered, Template
from elm_jax.records import PromptedExample, RowCounts, UnusedRow

WITHHELD_LABELS = (-1, "-1", "")
"""Labels by which published datasets mark rows whose right answer is withheld."""


@dataclass(frozen=True, repr=False)
class Renderings(Sequence[PromptedExample]):
    """A dataset's rows, rendered by one template: a sequence of examples with what became of the others.

    Attributes:
        examples: The prompted examples.
        counts: Rows that were read, used, left out and cut.
        unused: The first row that was left out for each reason, and for each column that rows lack.
        columns: Columns that rows have.
    """

    examples: tuple[PromptedExample, ...]
    counts: RowCounts
    unused: tuple[UnusedRow, ...] = ()
    columns: frozenset[str] = field(default=frozenset(), compare=False)

    def __len__(self) -> int:
        return len(self.examples)

    def to_pandas(self) -> Any:
        """Returns a DataFrame with a line for each example."""
        return to_frame(self.examples)

    def __repr__(self) -> str:
        return f"Renderings({len(self)} examples of {self.counts.read} rows)"

    @overload
    def __getitem__(self, index: SupportsIndex) -> PromptedExample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[PromptedExample]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> PromptedExample | Sequence[PromptedExample]:
        return self.examples[index]


@isolation.isolate_foreign_templates(1)
def render(
    rows: Iterable[Mapping[str, Any]],
    template: Template,
    *,
    truncate: int | None = MAX_VALUE_CHARACTERS,
    keep_empty: bool = False,
    is_ranked: bool = True,
    row_id: str = "row_id",
    label: str | None = None,
    limit: int | None = None,
    is_part: bool = False,
) -> Renderings:
    """Renders rows in order, and leaves out and counts those that cannot be used.

    A label is the index of the target among the choices, without the white space around them.

    Args:
        rows: The rows, as plain Python values by column; no more are read than are needed.
        template: The template.
        truncate: Characters that are kept of every value that the template writes; None keeps all.
        keep_empty: Whether rows with an empty input or target, or that the template does not apply to, are
            kept as examples with empty texts, on which the paper's released code trained; targets outside
            the choices are kept too.
        is_ranked: Whether the choices are ranked, so that the target has to be one of them. Otherwise they
            are words that the template writes with, and the answer is free text.
        row_id: Column of a row's id; a row without it has its number, from 0, as id.
        label: Column of the right answer; a row in which it is withheld cannot be used.
        limit: Examples at most.
        is_part: Whether there are other rows, which may have a column that all of these lack.

    Raises:
        UserError: If the template is wrong, or reads a column that no row has.
    """
    examples: list[PromptedExample] = []
    left_out: Counter[RowReason] = Counter()
    unused: dict[tuple[RowReason, str | None], UnusedRow] = {}
    have: set[str] = set()
    cut = 0
    for number, row in enumerate(rows):
        have.update(row)
        identity = str(row.get(row_id, number))
        try:
            example, is_cut = render_row(
                row,
                template,
                identity,
                truncate=truncate,
                keep_empty=keep_empty,
                is_ranked=is_ranked,
                label=label,
            )
        except RowError as error:
            left_out[error.reason] += 1
            unused.setdefault(
                (error.reason, error.column), UnusedRow(identity, error.reason, str(error), error.column)
            )
        else:
            examples.append(example)
            cut += is_cut
            if len(examples) == limit:
                break
    if not is_part:
        require_columns(unused.values(), have)
    counts = RowCounts(len(examples) + left_out.total(), len(examples), dict(left_out), cut)
    return Renderings(tuple(examples), counts, tuple(unused.values()), frozenset(have))


def require_columns(unused: Iterable[UnusedRow], have: Collection[str]) -> None:
    """Raises if rows were left out for lacking a column that no row has."""
    for row in unused:
        if row.column is not None and row.column not in have:
            raise UserError(row.message)


def render_row(
    row: Mapping[str, Any],
    template: Template,
    row_id: str,
    *,
    truncate: int | None = MAX_VALUE_CHARACTERS,
    keep_empty: bool = False,
    is_ranked: bool = True,
    label: str | None = None,
) -> tuple[PromptedExample, bool]:
    """Returns a row's example, and whether the limit of characters cut it; arguments are those of `render`.

    Raises:
        RowError: If the row cannot be used.
        UserError: If the template is wrong.
    """
    if label is not None and label in row and row[label] in WITHHELD_LABELS:
        raise RowError(
            f"Row {row_id!r}: expected a label, got {label}={row[label]!r}: the right answer is withheld. "
            "Fix: choose a labelled split.",
            "label",
        )
    rendered = template.render(row, truncate, row_id=row_id)
    if rendered is None and keep_empty:
        # The paper's code joins all parts but the last into the input.
        rendered = Rendered("", template.parts(row, truncate, row_id=row_id)[-1], ())
    if not keep_empty:
        _require_usable(rendered, template, row_id, is_ranked=is_ranked)
    assert rendered is not None
    return _example(rendered, row_id), rendered.cut


def _require_usable(rendered: Rendered | None, template: Template, row_id: str, *, is_ranked: bool) -> None:
    where = f"Template {template.name!r}, row {row_id!r}"
    if rendered is None:
        raise RowError(
            f"{where}: expected a target, got none: the template does not apply.", "does not apply"
        )
    if not (rendered.input and rendered.target):
        reason: RowReason = "empty target" if rendered.input else "empty input"
        raise RowError(f"{where}: expected a text, got an {reason}.", reason)
    if is_ranked and rendered.choices and rendered.target not in rendered.choices:
        choices = ", ".join(map(repr, rendered.choices))
        raise RowError(
            f"{where}: expected a target among the choices {choices:.300}, got {rendered.target!r:.100}.",
            "outside choices",
        )


def _example(rendered: Rendered, row_id: str) -> PromptedExample:
    choices = rendered.choices or ()
    label = choices.index(rendered.target) if rendered.target in choices else None
    return PromptedExample(row_id, rendered.input, rendered.target, choices, label, rendered.accepted)
