"""Files: JSON lines, CSV and Parquet, read into rows of plain Python values.

Every reader takes a file and returns its rows in order. It raises a UserError that names the file and the
line if the file is missing, empty or not UTF-8, or if a row holds NUL, a text of millions of characters, or
other columns.
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

FileRow = dict[str, Any]
AnyRows = TypeVar("AnyRows", bound=Sized)
Reader = Callable[[storage.PathLike], list[FileRow]]

# JSON can escape what no UTF-8 text holds: NUL, and one half of a pair of surrogates.
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


def read_jsonl(file: storage.PathLike) -> list[FileRow]:
    """Reads one JSON object per line; empty lines are skipped."""
    rows = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{str(file)!r}, line {number}"
        row = parse_json(line, where)
        if not isinstance(row, dict):
            raise UserError(
                f"{where}: expected a JSON object, got {line[:40]!r}. Fix: write one row per line."
            )
        rows.append(require_text(row, where))
    return require_rows(rows, file)


def read_csv(file: storage.PathLike, header: Sequence[str] = ()) -> list[FileRow]:
    """Reads comma-separated values, quoted as in RFC 4180; every value is a text.

    Args:
        file: The file.
        header: Names of the columns; default: the first line.
    """
    lines = csv.reader(io.StringIO(read_text(file), newline=""), strict=True)
    rows: list[FileRow] = []
    start = 1
    # The parser's limit is the process's, so it is restored; `require_text` checks ours.
    limit = csv.field_size_limit(2 * BUDGET)
    try:
        for values in lines:
            where = f"{str(file)!r}, line {start}"
            start = lines.line_num + 1
            if not header:
                header = _header(values, where)
            elif len(values) != len(header):
                raise UserError(
                    f"{where}: expected {len(header)} columns as in the header, got {len(values)}. Fix: put "
                    'values with commas or line breaks in double quotes ("), and double the quotes in them.'
                )
            else:
                rows.append(require_text(dict(zip(header, values, strict=True)), where))
    except csv.Error as error:
        raise UserError(
            f"{str(file)!r}, line {lines.line_num}: expected valid CSV, got {error}. Fix: correct the line."
        ) from error
    finally:
        csv.field_size_limit(limit)
    return require_rows(rows, file)


def read_parquet(file: storage.PathLike) -> list[FileRow]:
    """Reads a Parquet file whole."""
    table = open_parquet(file)
    return take_rows(table, range(table.num_rows), file)


def open_parquet(file: storage.PathLike) -> Any:
    """Opens a Parquet file as a pyarrow table, memory-mapped if it is local."""
    import pyarrow as arrow  # comes with tensorflow-datasets
    from pyarrow import parquet

    where = storage.path(file)
    try:
        table = parquet.read_table(os.fspath(where), memory_map=True)
    except (OSError, arrow.ArrowException) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(
            f"Expected a Parquet file at {str(file)!r}, got: {reason}. Fix: correct the path or the file."
        ) from error
    require_rows(range(table.num_rows), file)
    return table


def take_rows(table: Any, numbers: Sequence[int], file: storage.PathLike) -> list[FileRow]:
    """Returns the rows of some numbers, from 0, of a Parquet file's table."""
    rows = table.take(list(numbers)).to_pylist()
    return [
        require_text(row, f"{str(file)!r}, row {number + 1}")
        for number, row in zip(numbers, rows, strict=True)
    ]


READERS: Mapping[str, Reader] = {"jsonl": read_jsonl, "csv": read_csv, "parquet": read_parquet}
"""Readers by the name that the catalogue gives them."""


def read_text(file: storage.PathLike) -> str:
    """Returns the text of a UTF-8 file, without its byte-order mark."""
    try:
        content = storage.path(file).read_bytes()
    except OSError as error:
        raise UserError(
            f"Expected rows in {str(file)!r}, got: {error.strerror or error}. Fix: correct the path."
        ) from error
    nul = content.find(b"\0")
    if nul >= 0:
        line = content.count(b"\n", 0, nul) + 1
        raise UserError(f"{str(file)!r}, line {line}: expected text, got a NUL byte. Fix: remove it.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{str(file)!r}, line {line}: expected UTF-8, got other bytes. Fix: save the file as UTF-8."
        ) from error


def parse_json(text: str, where: str) -> Any:
    """Returns the value of a JSON text; `where` names its place in errors."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        inner = f", line {error.lineno}" if error.lineno > 1 else ""
        raise UserError(f"{where}{inner}: expected JSON, got {error.msg}. Fix: correct the text.") from error
    except (RecursionError, ValueError) as error:  # nested too deep, a number of thousands of digits
        raise UserError(f"{where}: expected JSON that can be read, got {error}. Fix: correct it.") from error


def _header(values: list[str], where: str) -> list[str]:
    repeated = sorted({name for name in values if values.count(name) > 1})
    if repeated or "" in values:
        wrong = f"{repeated[0]!r} twice" if repeated else "an empty one"
        raise UserError(f"{where}: expected a name of its own for every column, got {wrong}. Fix: rename it.")
    return values


def require_text(row: FileRow, where: str) -> FileRow:
    """Returns the row; raises if a text in it holds NUL, half a surrogate pair, or millions of characters."""
    try:
        for column, value in row.items():
            _check_value(value, column, where)
    except RecursionError:
        raise UserError(f"{where}: expected a row, got one nested too deeply. Fix: flatten it.") from None
    return row


def _check_value(value: Any, column: str, where: str) -> None:
    if isinstance(value, str):
        if len(value) > BUDGET:
            raise UserError(
                f"{where}: expected at most {BUDGET:,} characters, got {len(value):,} in column {column!r}. "
                "Fix: cut the text or drop the row."
            )
        if _NO_TEXT.search(value):
            raise UserError(
                f"{where}: expected text, got a NUL or half a surrogate pair in column {column!r}. Fix: "
                "remove it."
            )
    elif isinstance(value, dict):
        for item in [*value.keys(), *value.values()]:
            _check_value(item, column, where)
    elif isinstance(value, list):
        for item in value:
            _check_value(item, column, where)


def require_rows(rows: AnyRows, file: storage.PathLike) -> AnyRows:
    """Returns a file's rows; raises if there are none."""
    if not rows:
        raise UserError(f"Expected rows in {str(file)!r}, got none. Fix: name another file.")
    return rows
