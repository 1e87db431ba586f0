"""What commands print: JSON for a script, or tables that fit the terminal, and where the time went."""

import json
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from elm_jax.controls import escape_controls

if TYPE_CHECKING:
    from elm_jax.evaluation.evaluate import EvaluationResult
    from elm_jax.reporting.tables import Table

COLUMN_GAP = "  "
NUMERIC_STARTS = "0123456789+-−–<([."
"""What a cell of numbers begins with."""
LIST_MARK = re.compile(r"(,| \+) ")
"""What stands between the items of a list in a cell."""
Columns = list[list[str]]


def print_json(value: Any) -> None:
    """Prints a value as one line of JSON."""
    print(json.dumps(value, ensure_ascii=False))


def print_outcome(outcome: "EvaluationResult", as_json: bool = False) -> None:
    """Prints the methods' tables, where the time went, and the path of the report; or the report as JSON."""
    from elm_jax.reporting import tables

    if as_json:
        print(outcome.files["json"].read_text())
        return
    if outcome.report.means:
        print_table(tables.methods_table(outcome.report), may_shrink=True)
    others = (tables.rows_table, tables.ties_table, tables.generated_table)
    for table in (make_table(outcome.report) for make_table in others):
        if table.rows:
            print_table(table)
    times = ", ".join(
        f"{title} {seconds:.1f}" for title, seconds in outcome.seconds.items() if seconds >= 0.05
    )
    print(f"Seconds: {times}; in all {sum(outcome.seconds.values()):.1f}.")
    print(f"Report: {outcome.files['html']}")


def print_table(table: "Table", *, may_shrink: bool = False) -> None:
    """Prints a table as wide as the terminal; `COLUMNS`, or 80, where the output is no terminal.

    Names are never cut: a table that is too wide has its lists on several lines, and after that continues
    below, each part with the first column, or with numbers of the rows where that does not tell them apart.

    Args:
        table: The table.
        may_shrink: Whether to leave out columns, and say which, rather than continue below; the first and
            the last two stay.
    """
    for line in table_lines(table, shutil.get_terminal_size().columns, may_shrink=may_shrink):
        print(line)
    print()


def print_entry(name: str, text: str, *, indent: int = 19) -> None:
    """Prints a name and beside it a text, which is wrapped to the terminal."""
    head = f"{name:<{indent}}" if len(name) < indent else f"{name} "
    width = shutil.get_terminal_size().columns
    rest = " " * indent
    for line in textwrap.wrap(
        escape_controls(text),
        width,
        initial_indent=head,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [head.rstrip()]:
        print(line)


def table_lines(table: "Table", width: int, *, may_shrink: bool = False) -> Iterator[str]:
    """Yields the lines of a table; see `print_table`."""
    columns = [
        [escape_controls(cell) for cell in column] for column in zip(table.header, *table.rows, strict=True)
    ]
    captions = [table.caption] if table.caption else []
    if may_shrink:
        kept = _choose_columns([_column_width(column) for column in columns], width)
        left_out = [column[0] for number, column in enumerate(columns) if number not in kept]
        columns = [columns[number] for number in kept]
        if left_out:
            captions.append(f"Left out in {width} columns: {', '.join(left_out)}.")
    yield table.title
    columns = _narrow(columns, width)
    parts = list(_split(columns, width))
    if len(parts) > 1 and len(set(columns[0])) < len(columns[0]):
        numbers = ["", *map(str, range(1, len(columns[0])))]
        parts = list(_split([numbers, *columns], width))
    for part in parts:
        widths = [_column_width(column) for column in part]
        of_numbers = [_is_of_numbers(column) for column in part]
        yield ""
        for number, cells in enumerate(zip(*part, strict=True)):
            yield from _row_lines(cells, widths, of_numbers)
            if number == 0:
                yield COLUMN_GAP.join("─" * each for each in widths)
    if captions:
        yield ""
        yield from textwrap.wrap(" ".join(captions), width, break_long_words=False, break_on_hyphens=False)


def _choose_columns(widths: Sequence[int], width: int) -> list[int]:
    """Returns the columns that fit: the first and the last two, and then from the left."""
    ends = sorted({0, *range(max(0, len(widths) - 2), len(widths))})
    kept, room = list(ends), width - _total(widths[number] for number in ends)
    for number in range(len(widths)):
        if number not in ends and widths[number] + len(COLUMN_GAP) <= room:
            kept.append(number)
            room -= widths[number] + len(COLUMN_GAP)
        elif number not in ends:
            break
    return sorted(kept)


def _narrow(columns: Columns, width: int) -> Columns:
    """Puts the items of lists, "a, b" or "a + b", on lines of their own until a table fits.

    The widest column comes first.
    """
    columns = list(columns)
    while _total(map(_column_width, columns)) > width:
        lists = [number for number in range(1, len(columns)) if any(map(LIST_MARK.search, columns[number]))]
        if not lists:
            break
        widest = max(lists, key=lambda number: _column_width(columns[number]))
        columns[widest] = [LIST_MARK.sub(r"\1\n", cell) for cell in columns[widest]]
    return columns


def _split(columns: Columns, width: int) -> Iterator[Columns]:
    """Yields a table's columns in parts that fit, each with the first column."""
    first, part = columns[0], columns[:1]
    for column in columns[1:]:
        if len(part) > 1 and _total(map(_column_width, [*part, column])) > width:
            yield part
            part = [first]
        part.append(column)
    yield part


def _is_of_numbers(column: Sequence[str]) -> bool:
    """Returns whether a column, its header aside, has numbers alone, which end at the right."""
    return all("\n" not in cell and (not cell or cell[0] in NUMERIC_STARTS) for cell in column[1:])


def _row_lines(cells: Sequence[str], widths: Sequence[int], of_numbers: Sequence[bool]) -> Iterator[str]:
    """Yields the lines of one row."""
    lines = [cell.split("\n") for cell in cells]
    for at in range(max(map(len, lines))):
        line = []
        for each, wide, is_number in zip(lines, widths, of_numbers, strict=True):
            text = each[at] if at < len(each) else ""
            space = " " * (wide - _width(text))
            line.append(space + text if is_number else text + space)
        yield COLUMN_GAP.join(line).rstrip()


def _column_width(column: Sequence[str]) -> int:
    return max(_width(line) for cell in column for line in cell.split("\n"))


def _total(widths: Any) -> int:
    """Returns the width of columns beside each other."""
    widths = list(widths)
    return sum(widths) + len(COLUMN_GAP) * (len(widths) - 1)


def _width(text: str) -> int:
    """Returns the columns that a terminal takes for a text."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)
