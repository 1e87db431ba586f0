"""Findings: what is wrong with a task, one record a thing, and how rows are counted that it concerns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from elm_jax.errors import RowReason

T = TypeVar("T")

FINDING_KINDS = (
    *("columns", "rows", "rendering", "missing", "label", "element", "empty", "outside", "too-long"),
    *("unstable", "does-not-apply", "one-sided", "over-long", "truncation", "duplicates"),
    *("repeated-choices", "single-choice", "unicode", "unknown", "folded", "same-tokens"),
)
"""Kinds of findings.

columns           the template reads a column that the dataset, or some of its rows, lack
rows              rows cannot be read, or the template applies to none of them
rendering         the template fails, on some rows or on all
missing           a value that the template writes is null, NaN or empty
label             labels are withheld, negative, too large, or no whole numbers
element           a mapping or a list of a row lacks what the template looks up
empty             rows render to an empty input or target
outside           a target is none of its choices
too-long          a text is longer than a template can take
unstable          a text would be another one in another process
does-not-apply    the template gives no target for rows, where rows that cannot be used are refused
one-sided         the right choice is nearly always the same one
over-long         texts are cut: by the template's limit of characters, or by the limits of tokens
truncation        the filter that cuts texts changes what the template computes
duplicates        inputs occur more than once
repeated-choices  a row has a choice twice
single-choice     a row has one choice, which is right whatever the model says
unicode           the same characters are written in two ways (NFC and NFD)
unknown           the vocabulary lacks characters or words
folded            newlines or tabs are spaces to the vocabulary
same-tokens       choices that differ have the same tokens
"""
REASON_KINDS: Mapping[RowReason, str] = {
    "missing value": "missing",
    "label": "label",
    "no element": "element",
    "empty input": "empty",
    "empty target": "empty",
    "outside choices": "outside",
    "too long": "too-long",
    "unstable text": "unstable",
    "rendering fails": "rendering",
}
"""Why a row cannot be used -> the kind of finding; that a template does not apply is none."""


@dataclass(frozen=True)
class TaskFinding:
    """One thing that is wrong.

    Attributes:
        kind: One of `FINDING_KINDS`.
        rows: How many rows it concerns; 0 if none could be looked at.
        message: What is wrong, in a sentence.
    """

    kind: str
    rows: int
    message: str


@dataclass
class Tally(Generic[T]):
    """Counts rows that something is wrong with, and keeps what is said of the first.

    Attributes:
        rows: Number of rows.
        first: Of the first row; None if there is none.
    """

    rows: int = 0
    first: T | None = None

    def add(self, first: T) -> None:
        """Counts a row."""
        self.rows += 1
        self.first = first if self.first is None else self.first


def format_rows(count: int, does: str = "", do: str = "") -> str:
    """Returns a number of rows in words, with the verb for one or for several.

    >>> format_rows(1, "has", "have"), format_rows(1200)
    ('1 row has', '1,200 rows')
    """
    return f"{count:,} row {does}".rstrip() if count == 1 else f"{count:,} rows {do}".rstrip()
