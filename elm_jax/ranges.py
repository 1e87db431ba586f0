"""Ranges: which numbers the fields of a configuration may have, said beside them, and checked in one place.

    @dataclass(frozen=True)
    class ScheduleConfig:
        steps: int | None = field(default=None, metadata=ranges.whole(1))

        __post_init__ = ranges.check

So flags, recipes and Python are refused alike, before anything is read. None is for the reader to decide.
"""

import math
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from elm_jax.errors import UserError

METADATA_KEY = "range"
MAX_SEED = 2**32 - 1
"""The largest seed."""


@dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`; `above` leaves `least` out, and `whole` what is no integer."""

    least: int | float
    most: int | float | None = None
    above: bool = False
    below: bool = False
    whole: bool = False

    def __contains__(self, value: object) -> bool:
        """Tells whether a value is such a number, and finite."""
        kind = Integral if self.whole else Real
        if isinstance(value, bool) or not isinstance(value, kind) or not math.isfinite(value):  # pyright: ignore[reportArgumentType]
            return False
        number: Any = value
        if number < self.least or (self.above and number == self.least):
            return False
        return bool(self.most is None or number < self.most or (number == self.most and not self.below))

    def __str__(self) -> str:
        """Returns the range in words."""
        kind = "a whole number" if self.whole else "a number"
        lower = f"{'above' if self.above else 'of at least'} {self.least:g}"
        upper = "" if self.most is None else f" and {'below' if self.below else 'at most'} {self.most:.10g}"
        return f"{kind} {lower}{upper}"


def whole(least: int, most: int | None = None) -> dict[str, Range]:
    """Returns the metadata of a field of integers from `least` to `most`, the ends included."""
    return {METADATA_KEY: Range(least, most, whole=True)}


def real(
    least: int | float, most: int | float | None = None, *, above: bool = False, below: bool = False
) -> dict[str, Range]:
    """Returns the metadata of a field of finite numbers; `above` and `below` leave out the ends."""
    return {METADATA_KEY: Range(least, most, above=above, below=below)}


def seed() -> dict[str, Range]:
    """Returns the metadata of a field that seeds random numbers."""
    return whole(0, MAX_SEED)


def check(record: Any) -> None:
    """Raises a UserError if a field of a record has a number out of its range."""
    for each in fields(record):
        allowed, value = each.metadata.get(METADATA_KEY), getattr(record, each.name)
        if allowed is not None and value is not None and value not in allowed:
            raise UserError(
                f"Expected {each.name} as {allowed}, got {value!r}. Fix: change {type(record).__name__}."
                f"{each.name}, or the flag or macro that sets it."
            )


def require(name: str, value: object, allowed: dict[str, Range]) -> None:
    """Raises a UserError if the value of a function's argument is out of its range.

    Args:
        name: Of the argument.
        value: Its value.
        allowed: What `whole` or `real` returns.
    """
    if value not in allowed[METADATA_KEY]:
        raise UserError(
            f"Expected {name} as {allowed[METADATA_KEY]}, got {value!r}. Fix: give another {name}."
        )
