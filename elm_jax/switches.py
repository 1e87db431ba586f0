"""Switches: environment variables that turn something off."""

from collections.abc import Mapping

_OFF = ("off", "no", "false", "0")


def is_off(name: str, environment: Mapping[str, str]) -> bool:
    """Returns whether a variable says off, no, false or 0, in letters of any size."""
    return environment.get(name, "").lower() in _OFF
