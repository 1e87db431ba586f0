"""Row counts: how many rows were read, used, left out and cut, added up and in words.

The record is `elm_jax.records.RowCounts`. It travels with the rows: `rendering.examples` and
`data.task_rows.load_examples` return sequences of examples that have it as `counts`, prepared files hold it,
and every verb prints the sum of its tasks in one line.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from elm_jax import schema
from elm_jax.errors import RowReason
from elm_jax.records import RowCounts


def add_counts(counts: Iterable[RowCounts]) -> RowCounts:
    """Returns the sum of several counts.

    >>> add_counts([RowCounts(3, 2, {"label": 1}, 1), RowCounts(4, 3, {"label": 1})])
    RowCounts(read=7, used=5, left_out={'label': 2}, cut=1)
    """
    every = list(counts)
    left_out: Counter[RowReason] = Counter()
    for each in every:
        left_out.update(each.left_out)
    return RowCounts(
        read=sum(each.read for each in every),
        used=sum(each.used for each in every),
        left_out=dict(left_out),
        cut=sum(each.cut for each in every),
    )


def describe_counts(counts: RowCounts) -> str:
    """Returns counts in words, in one line.

    >>> describe_counts(RowCounts(13, 5, {"outside choices": 3, "empty target": 5}, 4))
    '13 rows read, 5 used, 8 left out (5 empty target, 3 outside choices), 4 cut'
    """
    parts = [f"{counts.read:,} {'row' if counts.read == 1 else 'rows'} read", f"{counts.used:,} used"]
    if counts.left_out:
        by_reason = sorted(counts.left_out.items(), key=lambda item: (-item[1], item[0]))
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in by_reason)
        parts.append(f"{sum(counts.left_out.values()):,} left out ({reasons})")
    return ", ".join(parts + ([f"{counts.cut:,} cut"] if counts.cut else []))


def to_json(counts: RowCounts) -> dict[str, Any]:
    """Returns counts as JSON has them."""
    return dataclasses.asdict(counts)


@dataclasses.dataclass(frozen=True)
class _CountsForm(schema.Form):
    read: schema.Count
    used: schema.Count
    left_out: Mapping[str, schema.Count]
    cut: schema.Count


def parse_counts(content: bytes) -> RowCounts:
    """Returns the counts that `to_json` gave, from JSON; reasons that are unknown here are kept by name.

    Raises:
        UserError: If it is something else.
    """
    told = schema.parse(content, _CountsForm, what="counts of rows", fix="prepare the task again")
    return RowCounts(**vars(told))
