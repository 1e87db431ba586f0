"""Missing values: null, NaN and empty texts of a row, traced through a template to where it writes them.

A text that is made of a missing value, as `None | upper` and `"" ~ title` are, is a `MissingText`. It behaves
as any other text, so that a template may test it and write something else in its place; only if it is written
is the row refused.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from elm_jax.errors import RowReason

TEXT_FILTERS = frozenset({"capitalize", "center", "e", "escape", "forceescape", "format", "indent"}).union(
    {"join", "lower", "replace", "striptags", "title", "trim", "truncate", "upper", "urlencode", "urlize"},
    {"wordwrap"},
)
"""Filters that make a text of whatever value they are given."""


class BadValueError(Exception):
    """A value that a template may not write, and why."""

    def __init__(self, expected: str, reason: RowReason) -> None:
        super().__init__(expected)
        self.reason: RowReason = reason


class MissingText(str):
    """A text that is empty in the row, or that is made of a missing value."""

    def __getitem__(self, key: Any) -> "MissingText":
        return MissingText(super().__getitem__(key))


def is_missing(value: Any) -> bool:
    """Returns whether a row's value is null, NaN or an empty text; the text "None" is none of these."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or value == ""


def is_missing_part(value: Any) -> bool:
    """Returns whether a value that a template works with is missing, or a list that holds one that is.

    Texts of the template itself may be empty.
    """
    if isinstance(value, str):
        return isinstance(value, MissingText)
    if isinstance(value, list | tuple):
        return any(map(is_missing_part, value))
    return value is None or (isinstance(value, float) and math.isnan(value))


def trace(function: Callable[..., Any], *, joins: bool = False) -> Callable[..., Any]:
    """Returns a function of jinja's that gives a MissingText if it makes a text of a missing value.

    Args:
        function: The function.
        joins: Whether it takes its values from whatever can be iterated.
    """

    @functools.wraps(function)  # keeps jinja's marks of what the function is passed
    def traced(*args: Any, **kwargs: Any) -> Any:
        if joins:
            args = tuple(list(arg) if hasattr(arg, "__next__") else arg for arg in args)
        return mark(function(*args, **kwargs), args)

    return traced


def mark(made: Any, values: Iterable[Any]) -> Any:
    """Returns what was made of values, as a MissingText if it is a text and one of them is missing."""
    return MissingText(made) if isinstance(made, str) and any(map(is_missing_part, values)) else made


def require_values(written: Iterable[Any]) -> None:
    """Raises a BadValueError if a value that a strict template wrote is missing."""
    for value in written:
        if isinstance(value, list | tuple):
            require_values(value)
        elif isinstance(value, Mapping):
            require_values(value.values())
        elif is_missing_part(value):
            got = "an empty text, or what was made of none" if isinstance(value, str) else repr(value)
            fix = "write another text in its place, as with {{ column or 'none' }}"
            raise BadValueError(f"a value to write, got {got}. Fix: {fix}", "missing value")


def require_number(value: Any) -> None:
    """Raises a BadValueError if a value of which a strict template makes a number is missing."""
    if is_missing_part(value):
        fix = "name the number that takes its place, as with {{ column | int(0) }}"
        raise BadValueError(f"a number, got {value!r}. Fix: {fix}", "missing value")
