"""CSV types: columns of whole numbers become numbers, as they are in JSON; all others stay texts."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from elm_jax.errors import UserError
from elm_jax.tasks.file_rows import FileRow, FileRows, join_rows

# As a number is written again: 007 and +1 are texts.
_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")


@dataclass
class ColumnExamples:
    """What a column of CSV holds beside empty values.

    Attributes:
        number: Where its first whole number is; None if it has none.
        text: Its first value that is none, and where that is; None if it has none.
    """

    number: str | None = None
    text: tuple[str, str] | None = None

    def add(self, value: str, where: str) -> None:
        """Notes a value."""
        if value and _WHOLE_NUMBER.fullmatch(value):
            self.number = self.number or where
        elif value:
            self.text = self.text or (value, where)


@dataclass(frozen=True, eq=False)
class CsvRows(FileRows):
    """The rows of a CSV file, whose values are texts.

    Attributes:
        columns: What each column holds.
    """

    columns: Mapping[str, ColumnExamples] = field(default_factory=dict)


def type_columns(parts: Sequence[CsvRows], number_columns: Sequence[str]) -> FileRows:
    """Returns the rows of files with numbers in the columns that hold whole numbers alone in all of them.

    An empty value of such a column is None.

    Args:
        parts: The files.
        number_columns: Columns that a template uses as numbers: they are refused if only some values are.

    Raises:
        UserError: If such a column is mixed.
    """
    names = dict.fromkeys(name for part in parts for name in part.columns)
    every = {name: [part.columns[name] for part in parts if name in part.columns] for name in names}
    texts = {name: next(filter(None, (each.text for each in own)), None) for name, own in every.items()}
    numbers = {name for name, own in every.items() if any(each.number for each in own)}
    for name in number_columns:
        text = texts.get(name)
        if name in numbers and text is not None:
            raise UserError(
                f"{text[1]}: expected a whole number in column {name!r}, as in other rows, got "
                f"{text[0]!r:.80}. Fix: correct the value."
            )
    typed = {name for name in numbers if texts[name] is None}
    rows = join_rows(parts)
    if not typed:
        return rows

    def take(chosen: Sequence[int]) -> Iterator[FileRow]:
        for row in rows.take(chosen):
            made = {name: int(row[name]) if row[name] else None for name in typed & row.keys()}
            yield {**row, **made}

    return FileRows(len(rows), take)
