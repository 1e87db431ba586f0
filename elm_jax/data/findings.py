"""Findings: what is wrong with a task, one record a thing, and the rendered rows that it is looked for in."""

from dataclasses import dataclass

from elm_jax.prompting.templates import Rendered

FINDING_KINDS = (
    *("columns", "rows", "rendering", "empty", "outside", "one-sided", "over-long", "duplicates"),
    *("repeated-choices", "single-choice", "unicode", "unknown", "folded", "same-tokens"),
)
"""Kinds of findings.

columns           the template reads a column that the dataset, or some of its rows, lack
rows              rows cannot be read, or the template applies to none of them
rendering         the template fails on rows
empty             rows render to an empty input or target
outside           a target is none of its choices
one-sided         the right choice is nearly always the same one
over-long         texts are cut: by the template's limit of characters, or by the limits of tokens
duplicates        inputs occur more than once
repeated-choices  a row has a choice twice
single-choice     a row has one choice, which is right whatever the model says
unicode           the same characters are written in two ways (NFC and NFD)
unknown           the vocabulary lacks characters or words
folded            newlines or tabs are spaces to the vocabulary
same-tokens       choices that differ have the same tokens
"""


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


@dataclass(frozen=True)
class RenderedRow:
    """One row, rendered with and without the limit of characters."""

    id: str
    rendered: Rendered
    uncut: Rendered

    @property
    def choices(self) -> tuple[str, ...]:
        """The answer choices, if there are any."""
        return self.rendered.choices or ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The input, the target and the choices."""
        return self.rendered.input, self.rendered.target, *self.choices


def format_rows(count: int, does: str = "", do: str = "") -> str:
    """Returns a number of rows in words, with the verb for one or for several.

    >>> format_rows(1, "has", "have"), format_rows(1200)
    ('1 row has', '1,200 rows')
    """
    return f"{count:,} row {does}".rstrip() if count == 1 else f"{count:,} rows {do}".rstrip()
