"""Fields: a foreign configuration is understood, every field of it, or refused by name.

A table says of each field that a library writes what it means here: it is used, it has no effect on what the
network computes, or it must have a value that means "nothing special". A field that is in no table may change
the function, so it is refused unless it is null or the caller names it as one to ignore.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from elm_jax.errors import UserError

IGNORE_IN_CONVERT = (
    "run `elm convert MODEL NEW --to elm --ignore {field}` and use NEW, which a run takes as its base"
)
IGNORE_IN_INDEX = "pass --ignore {field} to `elm index --embedder`, which the run remembers"


@dataclass(frozen=True)
class FieldTable:
    """What every field of one kind of configuration file means here.

    Attributes:
        format: What the file belongs to, for error messages.
        used: Fields that are read.
        unused: Fields that do not change what the network computes.
        neutral: Fields that would change it, with the values under which they do not.
        remedies: What helps against the other values of a field, where that is more than to ignore it.
        ignoring: How a caller says that a field is to be ignored; `{field}` stands for its name.
    """

    format: str
    used: frozenset[str]
    unused: frozenset[str]
    neutral: Mapping[str, tuple[Any, ...]]
    remedies: Mapping[str, str] = field(default_factory=dict)
    ignoring: str = IGNORE_IN_CONVERT

    @property
    def known(self) -> frozenset[str]:
        """All fields of the table."""
        return self.used | self.unused | frozenset(self.neutral)

    def require_known_fields(
        self, config: Mapping[str, Any], *, where: str, ignore: Collection[str] = ()
    ) -> None:
        """Refuses a configuration that says more than is understood.

        Args:
            config: The configuration, field by field.
            where: The file, for the error message.
            ignore: Fields that the caller has looked at and found to be of no effect.

        Raises:
            UserError: If a field is unknown and not null, or has a value that changes the function.
        """
        for name, value in config.items():
            if name in ignore or value is None or name in self.used or name in self.unused:
                continue
            ignoring = self.ignoring.replace("{field}", name)
            if name not in self.neutral:
                raise UserError(
                    f"Expected fields of {self.format} that elm_jax knows, got {name!r} = {value!r:.80} in "
                    f"{where!r}. Fix: if it does not change what the network computes, {ignoring}."
                )
            if not any(_is_same(value, each) for each in self.neutral[name]):
                wanted = " or ".join(map(_shown, self.neutral[name])) or "absent"
                remedy = self.remedies.get(
                    name, f"elm_jax does not compute this; use another checkpoint, or {ignoring}"
                )
                raise UserError(
                    f"Expected {name!r} in {where!r} to be {wanted}, got {value!r:.80}. Fix: {remedy}."
                )


def _shown(wanted: Any) -> str:
    """Returns a value as an error message has it; a pattern by the texts that it is made of."""
    return wanted.pattern.replace("|", " or ") if isinstance(wanted, re.Pattern) else repr(wanted)


def _is_same(value: Any, wanted: Any) -> bool:
    """Says whether two values are alike; 1 is not True, and a pattern stands for all texts that match."""
    if isinstance(wanted, re.Pattern):
        return isinstance(value, str) and wanted.fullmatch(value) is not None
    return type(value) is type(wanted) and value == wanted
