"""Frames: records as tables of pandas, for those who have it."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

from elm_jax.errors import UserError

T = TypeVar("T")


class Records(list[T], Generic[T]):
    """A list of records, or of ids, that pandas takes as a table."""

    def to_pandas(self) -> Any:
        """Returns a DataFrame with a line for each record; its columns are the fields, or `id`."""
        return to_frame(self)


class Record:
    """A record that pandas takes as a table of one line."""

    def to_pandas(self) -> Any:
        """Returns a DataFrame of one line; its columns are the fields."""
        return to_frame([self])


def to_frame(records: Iterable[Any]) -> Any:
    """Returns a DataFrame of records: dataclasses, mappings, or ids.

    Raises:
        UserError: If pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise UserError("Expected the package pandas, got none. Fix: pip install pandas") from None
    return pandas.DataFrame([_to_mapping(record) for record in records])


def _to_mapping(record: Any) -> Mapping[str, Any]:
    if dataclasses.is_dataclass(record):
        return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return record if isinstance(record, Mapping) else {"id": record}
