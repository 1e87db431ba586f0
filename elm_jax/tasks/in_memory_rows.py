"""In-memory rows: those of a task that is defined from a list, a DataFrame or a dataset of Hugging Face."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.tasks.user_sources import RowFunction


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class InMemoryRows:
    """The rows of a dataset, by split; called with a split, it returns its rows.

    Attributes:
        rows: Split -> its rows.
    """

    rows: Mapping[str, Sequence[Mapping[str, Any]]]

    @functools.cached_property
    def digest(self) -> str:
        """The digest of all rows, by which a change of them is noticed."""
        return storage.fingerprint({split: list(map(repr, rows)) for split, rows in self.rows.items()})

    def __call__(self, split: str) -> Sequence[Mapping[str, Any]]:
        if split not in self.rows:
            raise UserError(
                f"Expected a split among {', '.join(self.rows)}, got {split!r}. Fix: name one of these."
            )
        return self.rows[split]

    def __repr__(self) -> str:
        return f"InMemoryRows({', '.join(f'{split}: {len(rows)}' for split, rows in self.rows.items())})"


def read_rows(rows: Any, splits: Iterable[str]) -> tuple[RowFunction, list[str]]:
    """Returns a function that returns the rows of a split, and the splits that there are.

    Args:
        rows: A function that takes a split; or rows in any form of `define_task`, or such by split.
        splits: The splits of a function.

    Raises:
        UserError: If the rows have another form.
    """
    if callable(rows):
        return cast(RowFunction, rows), list(splits)
    by_split = rows if isinstance(rows, Mapping) else {"train": rows}
    found = InMemoryRows({str(split): _to_rows(each) for split, each in by_split.items()})
    return found, list(found.rows)


def _to_rows(rows: Any) -> list[Mapping[str, Any]]:
    """Returns rows as mappings by column, of values that JSON has."""
    as_dicts: Callable[[str], Any] | None = getattr(rows, "to_dict", None)
    # A DataFrame has `iloc`; a dataset of Hugging Face has `to_dict` too, but yields its rows by itself.
    listed = as_dicts("records") if as_dicts and hasattr(rows, "iloc") else rows
    try:
        found = [row for row in listed if isinstance(row, Mapping)]
        whole = len(found) == len(listed)
    except TypeError:
        whole, found = False, []
    if not whole or not found:
        raise UserError(
            "Expected rows as a list of dicts, a DataFrame or a dataset of Hugging Face, or one of them for "
            f"each split, got {type(rows).__name__}. Fix: give rows as in [{{'text': 'good', 'label': 1}}]."
        )
    return [{str(column): _to_plain(value) for column, value in row.items()} for row in found]


def _to_plain(value: Any) -> Any:
    """Returns NumPy's scalars and arrays as Python has them, and nothing where a DataFrame has NaN."""
    plain = value.tolist() if hasattr(value, "tolist") else value
    return None if isinstance(plain, float) and math.isnan(plain) else plain
