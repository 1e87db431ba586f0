"""Values: what of a row a template may write, and what is said where it may not or fails."""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jinja2
import numpy as np
from jinja2.exceptions import SecurityError

from elm_jax.errors import RowError, RowReason, UserError
from elm_jax.prompting import sandbox
from elm_jax.prompting.missing import BadValueError, MissingText, is_missing
from elm_jax.prompting.syntax import SEPARATOR

SEPARATOR_PLACEHOLDER = "3ed2dface8203c4c9dfb1a5dc58e41e0"
"""Replaces separators in a row while it is rendered; PromptSource's own, on which some templates split."""
NO_PLAIN_VALUES = (bytes, set, frozenset, np.ndarray)
# What Python writes of an object that has no text of its own, whatever a filter makes of its letters.
_OBJECT = re.compile(r"<[^<>\n]* at 0x[0-9a-f]+", re.IGNORECASE)


def split_parts(text: str, separator: str) -> tuple[str, ...]:
    """Returns the parts of a rendered text, without the white space around them."""
    return tuple(map(_restore, text.split(separator)))


def mark_texts(value: Any, *, protect: bool) -> Any:
    """Returns a row's value with its empty texts marked, nested ones too.

    Args:
        value: The value.
        protect: Whether separators in its texts are replaced, which `split_parts` puts back.

    Raises:
        BadValueError: If it holds bytes, or a set, whose order is another in every process.
    """
    if isinstance(value, str):
        if not value.strip():
            return MissingText(value)
        return value.replace(SEPARATOR, SEPARATOR_PLACEHOLDER) if protect else value
    if isinstance(value, Mapping):
        return {key: mark_texts(item, protect=protect) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [mark_texts(item, protect=protect) for item in value]
    if isinstance(value, set | frozenset):
        raise BadValueError("values in an order, got a set. Fix: make it a sorted list", "unstable text")
    if isinstance(value, bytes | np.ndarray):
        raise BadValueError(
            f"a text or another plain value, got {type(value).__name__}. Fix: write text as UTF-8, or pass "
            "the row through elm_jax.tasks.columns.to_plain",
            "rendering fails",
        )
    return value


def find_answers(written: Iterable[Any], target: str, length: int | None) -> tuple[str, ...] | None:
    """Returns a list's texts or numbers if a target is this list and nothing else, each cut to a length."""
    for value in written:
        is_flat = isinstance(value, list) and all(isinstance(item, str | int | float) for item in value)
        if is_flat and _restore(sandbox.cut_text(str(value), length)) == target:
            return tuple(_restore(sandbox.cut_text(str(item), length)) for item in value)
    return None


def require_stable(text: str, row: Mapping[str, Any]) -> None:
    """Raises a BadValueError if a text has the address of an object, unless a text of the row has it."""
    found = _OBJECT.findall(text) if "0x" in text or "0X" in text else []
    texts = list(_find_texts(row)) if found else []
    for written in found:
        if not any(written in each for each in texts):
            kind = re.sub(" at 0x.*", "", written, flags=re.IGNORECASE)  # the address differs every time
            raise BadValueError(
                f"a value with a text of its own, got {kind:.60}>, which is another in every process. "
                "Fix: write the value itself",
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
    if isinstance(error, sandbox.BadIndexError):
        return RowError(f"{about}: {reason}. Fix: correct the row.", "label")
    lacks_value = any(is_missing(row.get(column, 0)) for column in strict_columns)
    if isinstance(error, jinja2.UndefinedError):
        return _explain_undefined(about, reason, row, lacks_value)
    return RowError(
        f"{about}: expected it to render, got: {reason} ({type(error).__name__}). Fix: correct the template "
        "or the row.",
        "missing value" if lacks_value else "rendering fails",
    )


def _explain_undefined(about: str, reason: str, row: Mapping[str, Any], lacks_value: bool) -> RowError:
    name = re.fullmatch(r"'(.+)' is undefined", reason)
    if name and name[1] not in row:
        have = ", ".join(repr(column) for column in row) or "none"
        problem = f"expected column {name[1]!r}, got only {have}"
        return RowError(f"{about}: {problem}. Fix: rename a column.", "missing value", column=name[1])
    kind: RowReason = "missing value" if lacks_value else "no element"
    if kind == "no element" and re.search(r"list( object)?'? has no (element|attribute) '?-?\d", reason):
        kind = "label"
    return RowError(f"{about}: expected an element, got: {reason}. Fix: correct the row.", kind)


def _restore(text: str) -> str:
    return text.replace(SEPARATOR_PLACEHOLDER, SEPARATOR).strip()


def _find_texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _find_texts(item)
