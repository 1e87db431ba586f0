"""Formatting: numbers as tables and sentences show them."""

from collections.abc import Callable

MISSING = "–"
"""Stands in a table where there is no value."""
_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))


def format_percent(share: float | None) -> str:
    """Returns a fraction as a percentage with one decimal, and a dash for none.

    >>> format_percent(0.6125)
    '61.3'
    """
    return MISSING if share is None else f"{_round_half_up(100 * share):.1f}"


def format_points(difference: float) -> str:
    """Returns a difference of fractions as signed percentage points.

    >>> format_points(-0.041), format_points(0.0)
    ('-4.1', '0.0')
    """
    rounded = _round_half_up(100 * difference)
    return f"{rounded:+.1f}" if rounded else "0.0"


def format_interval(
    low: float | None, high: float | None, *, show: Callable[[float], str] = format_percent
) -> str:
    """Returns an interval in brackets, and nothing if it has no ends.

    Args:
        low: the lower end, a fraction.
        high: the upper end.
        show: how an end is formatted; `format_points` for a difference.

    >>> format_interval(0.58, 0.643)
    '[58.0, 64.3]'
    """
    return "" if low is None or high is None else f"[{show(low)}, {show(high)}]"


def format_p_value(p: float) -> str:
    """Returns a p value with three decimals, or that it is smaller than they can say.

    >>> format_p_value(0.0423), format_p_value(0.0002)
    ('0.042', '< 0.001')
    """
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def format_duration(seconds: int | float) -> str:
    """Returns a duration in the two largest units that it has.

    >>> format_duration(59), format_duration(5400), format_duration(200000)
    ('59 s', '1 h 30 min', '2 d 7 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def format_gigabytes(count: int | float) -> str:
    """Returns a number of bytes in GB (10⁹ bytes), without the unit.

    >>> format_gigabytes(1_234_000_000), format_gigabytes(141e9)
    ('1.23', '141')
    """
    return f"{count / 1e9:.2f}" if count < 100e9 else f"{count / 1e9:.0f}"


def format_quantity(number: int | float, unit: str) -> str:
    """Returns a number with three digits and its unit, with a metric prefix from a million on.

    >>> format_quantity(2.5e12, "FLOP"), format_quantity(1200, "FLOP")
    ('2.5 TFLOP', '1200 FLOP')
    """
    for size, prefix in _PREFIXES:
        if number >= size:
            return f"{number / size:.3g} {prefix}{unit}"
    return f"{number:.0f} {unit}"


def _round_half_up(value: float) -> float:
    # Formatting alone would print 61.25 as 61.2: halves go to even.
    return float(f"{value + (1e-9 if value >= 0 else -1e-9):.1f}")
