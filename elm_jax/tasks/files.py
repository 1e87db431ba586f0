"""Files: JSON lines, CSV and Parquet, read into rows of plain Python values.

Every reader takes a file and returns its rows in order; a row is read when it is asked for. A UserError names
the file and the line if the file is missing or empty, or if a row is not UTF-8 or holds NUL, a text of
millions of characters, or other columns.
"""

import codecs
import contextlib
import csv
import io
import json
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.prompting.limits import MAX_SIZE
from elm_jax.tasks.csv_types import ColumnExamples, CsvRows
from elm_jax.tasks.file_rows import FileRow, FileRows, RecordIndex, decode, open_file
from elm_jax.tasks.parquet_rows import open_arrow, open_parquet
from elm_jax.tasks.unpacked_files import UTF_8

Reader = Callable[[storage.PathLike], FileRows]

# JSON can escape what no UTF-8 text holds: NUL, and one half of a pair of surrogates.
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


def read_jsonl(file: storage.PathLike, encoding: str = UTF_8) -> FileRows:
    """Reads one JSON object per line; empty lines are skipped."""
    index, place = RecordIndex(file, encoding), 0
    with open_file(file, encoding) as stream:
        for number, line in enumerate(stream, start=1):
            mark = len(codecs.BOM_UTF8) if number == 1 and line.startswith(codecs.BOM_UTF8) else 0
            if line[mark:].strip():
                index.add(place + mark, number)
            place += len(line)

    def parse(line: str, where: str) -> FileRow:
        row = parse_json(line.rstrip(), where)
        if not isinstance(row, dict):
            raise UserError(
                f"{where}: expected a JSON object, got {line[:40]!r}. Fix: write one row per line."
            )
        return require_text(row, where)

    return index.rows(place, parse)


def read_csv(
    file: storage.PathLike, header: Sequence[str] = (), *, delimiter: str = "", encoding: str = UTF_8
) -> CsvRows:
    """Reads comma-separated values, quoted as in RFC 4180; every value is a text.

    Args:
        file: The file.
        header: Names of the columns; default: the first line.
        delimiter: What separates values; default: a tab in files that end with .tsv, a comma in others.
        encoding: The file's encoding.
    """
    if not delimiter:
        delimiter = "\t" if ".tsv" in storage.path(file).suffixes else ","
    index, place, number = RecordIndex(file, encoding), 0, 0
    columns: dict[str, ColumnExamples] = {}

    def lines(stream: Iterable[bytes]) -> Iterator[str]:
        nonlocal place, number
        for line in stream:
            number += 1
            text = decode(line, f"{str(file)!r}, line {number}")
            # Lines may end with a carriage return alone.
            parts = [*io.StringIO(text, newline="")] if "\r" in text.rstrip("\r\n") else [text]
            for part in parts:
                place += len(line) if len(parts) == 1 else len(part.encode())
                yield part.removeprefix("\ufeff") if number == 1 else part

    with open_file(file, encoding) as stream, _long_fields():
        start, first = 0, 1
        try:
            for values in csv.reader(lines(stream), delimiter=delimiter, strict=True):
                where = f"{str(file)!r}, line {first}"
                if not header:
                    header = _header(values, where)
                elif len(values) != len(header):
                    raise UserError(
                        f"{where}: expected {len(header)} columns as in the header, got {len(values)}. Fix: "
                        'put values with commas or line breaks in double quotes ("), and double the quotes '
                        "in them."
                    )
                else:
                    index.add(start, first)
                    for name, value in zip(header, values, strict=True):
                        columns.setdefault(name, ColumnExamples()).add(value, where)
                start, first = place, number + 1
        except csv.Error as error:
            raise UserError(
                f"{str(file)!r}, line {number}: expected valid CSV, got {error}. Fix: correct the line."
            ) from error

    def parse(record: str, where: str) -> FileRow:
        with _long_fields():
            text = io.StringIO(record.removeprefix("\ufeff"), newline="")
            values = next(csv.reader(text, delimiter=delimiter, strict=True))
        return require_text(dict(zip(columns, values, strict=True)), where)

    rows = index.rows(place, parse)
    return CsvRows(rows.size, rows.take, columns)


def read_parquet(file: storage.PathLike) -> FileRows:
    """Reads a Parquet file."""
    return _check_rows(open_parquet(file), file)


def read_arrow(file: storage.PathLike) -> FileRows:
    """Reads a file of a directory that `save_to_disk` of the package datasets wrote."""
    return _check_rows(open_arrow(file), file)


def _check_rows(rows: FileRows, file: storage.PathLike) -> FileRows:
    def take(numbers: Sequence[int]) -> Iterator[FileRow]:
        for number, row in zip(numbers, rows.take(numbers), strict=True):
            yield require_text(row, f"{str(file)!r}, row {number + 1}")

    return FileRows(len(rows), take)


READERS: Mapping[str, Reader] = {
    "jsonl": read_jsonl,
    "csv": read_csv,
    "parquet": read_parquet,
    "arrow": read_arrow,
}
"""Readers by the name that the catalogue gives them."""


def read_text(file: storage.PathLike) -> str:
    """Returns the text of a UTF-8 file, without its byte-order mark."""
    with open_file(file) as stream:
        lines = (decode(line, f"{str(file)!r}, line {number}") for number, line in enumerate(stream, start=1))
        return "".join(lines).removeprefix("\ufeff")


def parse_json(text: str, where: str) -> Any:
    """Returns the value of a JSON text; `where` names its place in errors."""
    try:
        return json.loads(text, object_pairs_hook=_require_different_names)
    except json.JSONDecodeError as error:
        inner = f", line {error.lineno}" if error.lineno > 1 else ""
        raise UserError(f"{where}{inner}: expected JSON, got {error.msg}. Fix: correct the text.") from error
    except (RecursionError, ValueError) as error:  # nested too deep, a number of thousands of digits
        raise UserError(f"{where}: expected JSON that can be read, got {error}. Fix: correct it.") from error


def _require_different_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)!r} twice")
    return made


@contextlib.contextmanager
def _long_fields() -> Generator[None, None, None]:
    """Raises the CSV parser's limit, which is the process's, for a while; `require_text` checks ours."""
    limit = csv.field_size_limit(2 * MAX_SIZE)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


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
        if len(value) > MAX_SIZE:
            raise UserError(
                f"{where}: expected at most {MAX_SIZE:,} characters, got {len(value):,} in column "
                f"{column!r}. "
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
