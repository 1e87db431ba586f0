"""Sources: files of rows, read into plain Python dictionaries.

Every reader takes a file and returns its rows in order. Whatever is wrong with the file (absent, empty, no
UTF-8, NUL bytes, a text of millions of characters, a row of another shape) is a `UserError` naming the file
and the line.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.prompting.limits import BUDGET

Row = dict[str, Any]

# JSON can escape what no UTF-8 text holds: NUL, and one half of a pair of surrogates.
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


def read_jsonl(file: storage.PathLike) -> list[Row]:
    """Reads one JSON object a line; empty lines are passed over."""
    rows = []
    for number, line in enumerate(_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{str(file)!r}, line {number}"
        row = _json(line, where)
        if not isinstance(row, dict):
            raise UserError(f"{where}: a JSON object is wanted, but {line[:40]!r} came.")
        rows.append(_checked(row, where))
    return _not_empty(rows, file)


def read_csv(file: storage.PathLike) -> list[Row]:
    """Reads comma-separated values under a header, quoted as RFC 4180 says; every value is a text."""
    lines = csv.reader(io.StringIO(_text(file), newline=""), strict=True)
    rows: list[Row] = []
    header: list[str] | None = None
    start = 1
    # The parser's own limit is for the whole process, so it is put back; `_checked` has ours.
    limit = csv.field_size_limit(2 * BUDGET)
    try:
        for values in lines:
            where = f"{str(file)!r}, line {start}"
            start = lines.line_num + 1
            if header is None:
                header = _header(values, where)
            elif len(values) != len(header):
                raise UserError(
                    f"{where}: {len(header)} columns are wanted as in the header, but {len(values)} came. "
                    'A value with commas or line breaks belongs in double quotes ("), a quote in it doubled.'
                )
            else:
                rows.append(_checked(dict(zip(header, values, strict=True)), where))
    except csv.Error as error:
        raise UserError(f"{str(file)!r}, line {lines.line_num}, is no valid CSV: {error}.") from error
    finally:
        csv.field_size_limit(limit)
    return _not_empty(rows, file)


def read_dream(file: storage.PathLike) -> list[Row]:
    """Reads DREAM's JSON: one row a question, with the columns of the hub's copy.

    Each dialogue is `[turns, questions, dialogue id]`; `id` counts the questions from 0.
    """
    rows: list[Row] = []
    dialogues = _json(_text(file), repr(str(file)))
    if not isinstance(dialogues, list):
        raise UserError(f"{str(file)!r} should hold a list of dialogues as DREAM's files do.")
    for number, dialogue in enumerate(dialogues, start=1):
        where = f"{str(file)!r}, dialogue {number}"
        try:
            turns, questions, identity = dialogue
            found = [(entry["question"], entry["choice"], entry["answer"]) for entry in questions]
        except (TypeError, ValueError, KeyError) as error:
            raise UserError(f"{where}: [turns, questions, id] is wanted as in DREAM's files.") from error
        for question, choice, answer in found:
            row = {
                "id": len(rows),
                "dialogue_id": identity,
                "dialogue": turns,
                "question": question,
                "choice": choice,
                "answer": answer,
            }
            _check_dream(row, where)
            rows.append(_checked(row, where))
    return _not_empty(rows, file)


READERS: Mapping[str, Callable[[storage.PathLike], list[Row]]] = {
    "jsonl": read_jsonl,
    "csv": read_csv,
    "dream": read_dream,
}
"""Readers by the name that the catalogue gives them."""


def _check_dream(row: Row, where: str) -> None:
    for column in ("dialogue_id", "question", "answer"):
        if not isinstance(row[column], str):
            raise UserError(f"{where}: its {column} should be a text, but {row[column]!r} came.")
    for column in ("dialogue", "choice"):
        value = row[column]
        if not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            raise UserError(f"{where}: its {column} should be a list of texts, but {value!r} came.")


def _text(file: storage.PathLike) -> str:
    """Returns a file's text without its byte-order mark."""
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


def _json(text: str, where: str) -> Any:
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


def _checked(row: Row, where: str) -> Row:
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


def _not_empty(rows: list[Row], file: storage.PathLike) -> list[Row]:
    if not rows:
        raise UserError(f"Rows are wanted from {str(file)!r}, but it holds none.")
    return rows
