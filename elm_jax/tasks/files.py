"""Files: JSON lines, CSV and Parquet, read into rows of plain Python values.

Every reader takes a file and returns its rows in order. Whatever is wrong with the file (absent, empty, no
UTF-8, NUL bytes, a text of millions of characters, a row of another shape) is a `UserError` naming the file
and the line.
"""

import csv
import io
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any, TypeVar

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.prompting.limits import BUDGET

Row = dict[str, Any]
Rows = TypeVar("Rows", bound=Sized)
Reader = Callable[[storage.PathLike], list[Row]]

# JSON can escape what no UTF-8 text holds: NUL, and one half of a pair of surrogates.
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


def read_jsonl(file: storage.PathLike) -> list[Row]:
    """Reads one JSON object a line; empty lines are passed over."""
    rows = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{str(file)!r}, line {number}"
        row = parse_json(line, where)
        if not isinstance(row, dict):
            raise UserError(f"{where}: a JSON object is wanted, but {line[:40]!r} came.")
        rows.append(checked(row, where))
    return not_empty(rows, file)


def read_csv(file: storage.PathLike, header: Sequence[str] = ()) -> list[Row]:
    """Reads comma-separated values, quoted as RFC 4180 says; every value is a text.

    The columns are called as the first line says, or as `header` does where the file has no such line.
    """
    lines = csv.reader(io.StringIO(read_text(file), newline=""), strict=True)
    rows: list[Row] = []
    start = 1
    # The parser's own limit is for the whole process, so it is put back; `checked` has ours.
    limit = csv.field_size_limit(2 * BUDGET)
    try:
        for values in lines:
            where = f"{str(file)!r}, line {start}"
            start = lines.line_num + 1
            if not header:
                header = _header(values, where)
            elif len(values) != len(header):
                raise UserError(
                    f"{where}: {len(header)} columns are wanted as in the header, but {len(values)} came. "
                    'A value with commas or line breaks belongs in double quotes ("), a quote in it doubled.'
                )
            else:
                rows.append(checked(dict(zip(header, values, strict=True)), where))
    except csv.Error as error:
        raise UserError(f"{str(file)!r}, line {lines.line_num}, is no valid CSV: {error}.") from error
    finally:
        csv.field_size_limit(limit)
    return not_empty(rows, file)


def read_parquet(file: storage.PathLike) -> list[Row]:
    """Reads a Parquet file whole."""
    table = open_parquet(file)
    return take(table, range(table.num_rows), file)


def open_parquet(file: storage.PathLike) -> Any:
    """Opens a Parquet file as a table of pyarrow's, mapped into memory where it is local."""
    import pyarrow as arrow  # comes with tensorflow-datasets
    from pyarrow import parquet

    where = storage.path(file)
    try:
        table = parquet.read_table(os.fspath(where), memory_map=True)
    except (OSError, arrow.ArrowException) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(f"A Parquet file is wanted at {str(file)!r}, but: {reason}.") from error
    not_empty(range(table.num_rows), file)
    return table


def take(table: Any, numbers: Sequence[int], file: storage.PathLike) -> list[Row]:
    """Returns the rows of those numbers, from 0, of a Parquet file's table."""
    rows = table.take(list(numbers)).to_pylist()
    return [
        checked(row, f"{str(file)!r}, row {number + 1}") for number, row in zip(numbers, rows, strict=True)
    ]


READERS: Mapping[str, Reader] = {"jsonl": read_jsonl, "csv": read_csv, "parquet": read_parquet}
"""Readers by the name that the catalogue gives them."""


def read_text(file: storage.PathLike) -> str:
    """Returns a file's text, which is UTF-8, without its byte-order mark."""
    try:
        content = storage.path(file).read_bytes()
    except OSError as error:
        raise UserError(f"Rows are wanted from {str(file)!r}, but: {error.strerror or error}.") from error
    nul = content.find(b"\0")
    if nul >= 0:
        line = content.count(b"\n", 0, nul) + 1
        raise UserError(f"{str(file)!r}, line {line}, holds a NUL byte, which no text has. Remove it.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{str(file)!r}, line {line}, is not UTF-8. Save the file as UTF-8.") from error


def parse_json(text: str, where: str) -> Any:
    """Returns what a JSON text says; `where` it stands is for errors."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        inner = f", line {error.lineno}" if error.lineno > 1 else ""
        raise UserError(f"{where}{inner}: this is no JSON ({error.msg}).") from error
    except (RecursionError, ValueError) as error:  # nested too deep, a number of thousands of digits
        raise UserError(f"{where}: this JSON cannot be read ({error}).") from error


def _header(values: list[str], where: str) -> list[str]:
    twice = sorted({name for name in values if values.count(name) > 1})
    if twice or "" in values:
        wrong = repr(twice[0]) if twice else "an empty one"
        raise UserError(f"{where}: every column should have a name of its own, but {wrong} came.")
    return values


def checked(row: Row, where: str) -> Row:
    """Returns the row, unless it holds what no text has, or a text of millions of characters."""
    try:
        for column, value in row.items():
            _check_value(value, column, where)
    except RecursionError:
        raise UserError(f"{where}: the row nests too deep.") from None
    return row


def _check_value(value: Any, column: str, where: str) -> None:
    if isinstance(value, str):
        if len(value) > BUDGET:
            raise UserError(
                f"{where}: a text may have {BUDGET:,} characters, but column {column!r} has {len(value):,}. "
                "Cut it or drop the row."
            )
        if _NO_TEXT.search(value):
            raise UserError(f"{where}: column {column!r} holds a NUL or half a character, which no text has.")
    elif isinstance(value, dict):
        for item in [*value.keys(), *value.values()]:
            _check_value(item, column, where)
    elif isinstance(value, list):
        for item in value:
            _check_value(item, column, where)


def not_empty(rows: Rows, file: storage.PathLike) -> Rows:
    """Returns a file's rows, unless there are none."""
    if not rows:
        raise UserError(f"Rows are wanted from {str(file)!r}, but it holds none.")
    return rows
