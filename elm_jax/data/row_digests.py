"""Row digests: what the rows of a task hold, in so few bytes that whatever is made of them can carry it.

A column has one digest of all its values, which says whether anything changed, and two bytes a row of some
rows, evenly apart, which say of how many. Nothing else of the rows is kept.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from elm_jax import schema
from elm_jax.records import PromptedExample

COLUMNS = ("label", "target", "input", "choices")
SAMPLED_ROWS = 1024
"""Rows at most of which two bytes are kept."""


@dataclass(frozen=True)
class RowDigests:
    """Digests of a task's rows.

    Attributes:
        count: Number of rows.
        columns: Column of `COLUMNS` -> digest of its values in all rows.
        sample: Column -> two bytes for each of some rows, as base64.
    """

    count: schema.Count
    columns: Mapping[str, str]
    sample: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Returns the digests as plain values."""
        return asdict(self)


class RowDigester:
    """Digests rows that come one by one."""

    def __init__(self) -> None:
        self._columns = {column: hashlib.sha256() for column in COLUMNS}
        self._rows: list[bytes] = []

    def add(self, example: PromptedExample) -> None:
        """Adds the next row."""
        target = json.dumps([example.target, *example.accepted]) if example.accepted else example.target
        values = (str(example.label), target, example.input, json.dumps(example.choices))
        row = b""
        for whole, value in zip(self._columns.values(), values, strict=True):
            digest = hashlib.blake2b(value.encode(errors="surrogatepass"), digest_size=8).digest()
            whole.update(digest)
            row += digest[:2]
        self._rows.append(row)

    def finish(self) -> RowDigests:
        """Returns the digests of all rows that were added."""
        sampled = self._rows[:: _step(len(self._rows))]
        return RowDigests(
            len(self._rows),
            {column: whole.hexdigest()[:16] for column, whole in self._columns.items()},
            {
                column: base64.b64encode(b"".join(row[2 * at : 2 * at + 2] for row in sampled)).decode()
                for at, column in enumerate(COLUMNS)
            },
        )


def digest_rows(examples: Iterable[PromptedExample]) -> RowDigests:
    """Returns the digests of rows."""
    digester = RowDigester()
    for example in examples:
        digester.add(example)
    return digester.finish()


def from_json(value: Any) -> RowDigests:
    """Returns the digests that `to_json` wrote.

    Raises:
        ValueError: If the value is of another form.
    """
    digests = schema.build_record(value, RowDigests)
    for column, text in digests.sample.items():
        if len(base64.b64decode(text, validate=True)) % 2:
            raise ValueError(f"Expected two bytes a row, got an odd number for {column!r}.")
    return digests


def describe_differences(before: RowDigests, now: RowDigests) -> list[str]:
    """Returns which columns differ, and in how many rows; nothing if none does.

    >>> rows = [PromptedExample(str(n), "so?", "yes", ("yes", "no"), n % 2) for n in range(4)]
    >>> describe_differences(digest_rows(rows), digest_rows([*rows[:3], rows[0]]))
    ['label of 1 of 4 rows']
    """
    if before.count != now.count:
        return [f"rows ({now.count:,}, were {before.count:,})"]
    return [
        _count_differences(column, before, now)
        for column in COLUMNS
        if before.columns.get(column) != now.columns.get(column)
    ]


def _count_differences(column: str, before: RowDigests, now: RowDigests) -> str:
    sides = [
        np.frombuffer(base64.b64decode(side.sample.get(column, "")), np.uint16) for side in (before, now)
    ]
    if len(sides[0]) != len(sides[1]):
        return f"{column} of some of {now.count:,} rows"
    differing, looked_at = int((sides[0] != sides[1]).sum()), len(sides[0])
    if looked_at == now.count:
        return f"{column} of {max(1, differing):,} of {now.count:,} rows"
    return f"{column} of {differing:,} of {looked_at:,} rows that were compared, of {now.count:,}"


def _step(count: int) -> int:
    """Returns how far apart the rows are that are sampled."""
    return max(1, -(-count // SAMPLED_ROWS))
