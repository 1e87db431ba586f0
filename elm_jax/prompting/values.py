"""Values: what of a row a template may write, and what is said where it may not or fails."""

import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jinja2
import numpy as np
from jinja2.exceptions import SecurityError

from elm_jax.errors import RowError, RowReason, UserError
from elm_jax.prompting import sandbox

SEPARATOR = "|||"
PROTECTOR = "3ed2dface8203c4c9dfb1a5dc58e41e0"
"""Replaces separators in a row while it is rendered; PromptSource's own, on which some templates split."""
NO_PLAIN_VALUES = (bytes, set, frozenset, np.ndarray)
# What Python writes of an object that has no text of its own.
_ADDRESS = " at 0x"
_OBJECT = re.compile(r"<[^<>\n]* at 0x[0-9a-fA-F]+")


class BadValueError(Exception):
    """A value that a template may not write, and why."""

    def __init__(self, expected: str, reason: RowReason) -> None:
        super().__init__(expected)
        self.reason: RowReason = reason


class EmptyText(str):
    """A text of a row that has no character, or white space alone."""


def mark_texts(value: Any) -> Any:
    """Returns a row's value with its separators replaced and its empty texts marked, nested ones too.

    Raises:
        BadValueError: If it holds bytes, or a set, whose order is another in every process.
    """
    if isinstance(value, str):
        return value.replace(SEPARATOR, PROTECTOR) if value.strip() else EmptyText(value)
    if isinstance(value, Mapping):
        return {key: mark_texts(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [mark_texts(item) for item in value]
    if isinstance(value, set | frozenset):
        raise BadValueError("values in an order, got a set. Fix: make it a sorted list", "unstable text")
    if isinstance(value, bytes | np.ndarray):
        raise BadValueError(
            f"a text or another plain value, got {type(value).__name__}. Fix: write text as UTF-8, or pass "
            "the row through elm_jax.tasks.columns.to_plain",
            "rendering fails",
        )
    return value


def is_missing(value: Any) -> bool:
    """Returns whether a row's value is null, NaN or an empty text; the text "None" is none of these."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or value == ""


def require_values(written: Iterable[Any]) -> None:
    """Raises a BadValueError if a value that a strict template wrote is missing."""
    for value in written:
        if isinstance(value, list | tuple):
            require_values(value)
        elif isinstance(value, EmptyText) or (is_missing(value) and not isinstance(value, str)):
            got = "an empty text" if isinstance(value, str) else repr(value)
            fix = "write another text in its place, as with {{ column or 'none' }}"
            raise BadValueError(f"a value to write, got {got}. Fix: {fix}", "missing value")


def require_stable(text: str, row: Mapping[str, Any]) -> None:
    """Raises a BadValueError if a text has the address of an object, unless a text of the row has it."""
    if _ADDRESS not in text:
        return
    texts = list(_find_texts(row))
    for found in _OBJECT.findall(text):
        if not any(found in each for each in texts):
            raise BadValueError(
                f"a value with a text of its own, got {found:.60}>, which is another in every process. Fix: "
                "write the value itself",
                "unstable text",
            )


@functools.lru_cache(maxsize=8192)
def add_truncation(source: str, length: int) -> str:
    """Returns the source with a filter that cuts every value, added to the text as PromptSource does."""
    return source.replace("}}", f" | string | truncate({length}) }}}}")


@functools.lru_cache(maxsize=8192)
def changes_row(source: str) -> bool:
    """Returns whether a template's source may change a list of the row."""
    changes = r"\.\s*(append|clear|extend|insert|pop|popitem|remove|reverse|setdefault|sort|update)\b"
    return re.search(changes, source) is not None


def explain_failure(
    about: str, error: Exception, row: Mapping[str, Any], strict_columns: Iterable[str]
) -> UserError:
    """Returns what is wrong where a template failed: with the row, or with the template as it is.

    Args:
        about: The template and the row, in words.
        error: What it raised.
        row: The row.
        strict_columns: Columns that the template reads, if a missing value in them explains the failure.
    """
    reason = str(error).rstrip(".")
    if isinstance(error, jinja2.TemplateSyntaxError):
        problem = f"expected jinja, got an error in line {error.lineno}: {str(error.message).rstrip('.')}"
        return UserError(f"{about}: {problem}. Fix: correct the template.")
    if isinstance(error, SecurityError):
        return UserError(
            f"{about}: expected it to render, got: {reason}. Fix: correct the template or the row."
        )
    if isinstance(error, BadValueError):
        return RowError(f"{about}: expected {reason}.", error.reason)
    if isinstance(error, sandbox.NegativeIndexError):
        return RowError(f"{about}: {reason}. Fix: correct the row.", "label")
    if isinstance(error, jinja2.UndefinedError):
        return _explain_undefined(about, reason, row, strict_columns)
    return RowError(
        f"{about}: expected it to render, got: {reason} ({type(error).__name__}). Fix: correct the template "
        "or the row.",
        "rendering fails",
    )


def _explain_undefined(
    about: str, reason: str, row: Mapping[str, Any], strict_columns: Iterable[str]
) -> RowError:
    name = re.fullmatch(r"'(.+)' is undefined", reason)
    if name and name[1] not in row:
        have = ", ".join(repr(column) for column in row) or "none"
        problem = f"expected column {name[1]!r}, got only {have}"
        return RowError(f"{about}: {problem}. Fix: rename a column.", "missing value", column=name[1])
    kind: RowReason = "no element"
    if any(is_missing(row.get(column, 0)) for column in strict_columns):
        kind = "missing value"
    elif re.search(r"list( object)?'? has no element -?\d", reason):
        kind = "label"
    return RowError(f"{about}: expected an element, got: {reason}. Fix: correct the row.", kind)


def _find_texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _find_texts(item)
