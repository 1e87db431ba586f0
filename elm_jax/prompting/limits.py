"""Limits: how much a template may make, judged before it is made wherever that can be told."""

import math
import operator
import re
from collections.abc import Mapping, Sequence, Sized
from typing import Any

from jinja2.exceptions import SecurityError

MAX_SIZE = 2_000_000
"""The most characters and list items that a field of a row, a value in a template or a rendering may have."""
CHARACTERS_PER_LOOP_TURN = 5
"""What a turn of a loop costs of that, beyond the text in it."""
MOST_BITS = 10_000
"""The most binary digits of a number."""

# Filters and methods whose result can be far larger than what goes in. In the first a number is a length.
TAKE_LENGTH = frozenset({"batch", "center", "expandtabs", "indent", "ljust", "rjust", "round"}).union(
    {"slice", "tojson", "wordwrap", "zfill"}
)
GROWING_FILTERS = frozenset({"batch", "center", "escape", "forceescape", "format", "indent", "join"}).union(
    {"pprint", "replace", "round", "slice", "sum", "tojson", "urlize", "wordwrap", "xmlattr"}
)
GROWING_METHODS = frozenset({"center", "expandtabs", "extend", "format", "format_map", "join"}).union(
    {"ljust", "replace", "rjust", "translate", "update", "zfill"}
)
# A width of six digits or more, or one handed over as a value.
_WIDE_FORMAT = re.compile(r"%[^%A-Za-z]*(\d{6}|\*)|\{[^{}]*:[^{}]*(\d{6}|\{)")


def size_of(value: Any) -> int:
    """Counts the characters and items of a value, nested ones included; stops counting beyond `MAX_SIZE`.

    >>> size_of(["ab", ["c"]])
    6
    """
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    elif not isinstance(value, list | tuple | set | frozenset):
        return 1
    total = 0
    for item in value:
        total += 1 + (len(item) if type(item) is str else size_of(item))
        if total > MAX_SIZE:
            break
    return total


def check_size(size: int) -> None:
    """Refuses a value of more than `MAX_SIZE` characters and items."""
    if size > MAX_SIZE:
        raise SecurityError(f"it makes a value of more than {MAX_SIZE:,} characters or items")


def require_bounded(value: Any) -> Any:
    """Returns the value, unless it is too large."""
    check_size(size_of(value))
    return value


def check_result_size(name: str, arguments: Sequence[Any]) -> None:
    """Refuses a call of a growing filter or method (its owner is an argument) by what it would make."""
    check_size(_growth(name, arguments))


def _growth(name: str, arguments: Sequence[Any]) -> int:
    """Guesses from above, but within reason, how large the result of a call will be."""
    texts = [argument for argument in arguments if isinstance(argument, str)]
    sizes = [size_of(argument) for argument in arguments]
    if name == "replace" and len(texts) >= 3:
        return len(texts[0]) + texts[0].count(texts[1]) * len(texts[2])
    if name == "join":
        items = max((len(argument) for argument in arguments if isinstance(argument, Sized)), default=0)
        return sum(sizes) + items * max(map(len, texts), default=0)
    if name in ("format", "format_map"):
        if any(_WIDE_FORMAT.search(text) for text in texts):
            raise SecurityError("it formats a value to a width of a hundred thousand or more")
        return sum(sizes) * max((text.count("{") + text.count("%") for text in texts), default=0)
    if name in TAKE_LENGTH:
        lengths = [abs(argument) if isinstance(argument, int) else 1 for argument in arguments]
        # Of a length that is added to every line or item, the lines are guessed at 50 characters.
        return max(*lengths, sum(sizes), sum(sizes) * max(lengths) // 50)
    return math.prod(sizes) if name == "translate" else sum(sizes)


def add(left: Any, right: Any) -> Any:
    check_size(_length(left) + _length(right))
    return operator.add(left, right)


def multiply(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        _check_number(left.bit_length() + right.bit_length())
    elif isinstance(left, int) or isinstance(right, int):
        number, sequence = (left, right) if isinstance(left, int) else (right, left)
        check_size(_length(sequence) * abs(number))
    return operator.mul(left, right)


def power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        _check_number(left.bit_length() * abs(right))
    return operator.pow(left, right)


def remainder(left: Any, right: Any) -> Any:
    if isinstance(left, str):
        check_result_size("format", [left, right])
    return operator.mod(left, right)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 0


def _check_number(bits: int) -> None:
    if bits > MOST_BITS:
        raise SecurityError(f"it makes a number of more than {MOST_BITS:,} binary digits")
