"""Result files: the headers of kept scores and answers, which say how an expert did."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge
from etils import epath

from elm_jax import schema, storage
from elm_jax.errors import DamagedResultsError, UserError


@dataclass(frozen=True)
class ScoresHeader(schema.Form):
    """What a file of scores says of all its rows.

    Attributes:
        rows: How many there are.
        right: How many are right; one of n best choices counts 1 / n.
        tied: How many have several best choices.
    """

    rows: schema.Size
    right: Annotated[float, Ge(0)]
    tied: schema.Count = 0

    def __post_init__(self) -> None:
        if max(self.right, self.tied) > self.rows:
            raise ValueError(f"more right or tied than the {self.rows} rows")


@dataclass(frozen=True)
class AnswersHeader(schema.Form):
    """What a file of answers says of all its rows.

    Attributes:
        measure: What was measured.
        value: The measure in percent.
        low: The lower end of its 95 % interval; None if there is no interval.
        high: The upper end.
        judging: The metric with its options.
    """

    measure: schema.Text
    value: float
    low: float | None
    high: float | None
    judging: str = ""


def read_header(file: epath.Path) -> ScoresHeader | AnswersHeader | None:
    """Returns the header of a file of scores or answers; None if it is another file.

    Files of the first versions have no checksum, and are believed.

    Raises:
        DamagedResultsError: If the file was changed after it was written.
    """
    header, _, is_whole = storage.read_sealed_lines(file)
    if header is None:
        return None
    if is_whole is False:
        raise damaged_results(file)
    form = next((form for name, form in _FORMS.items() if name in header), None)
    return None if form is None else parse_header(header, form, file)


def parse_header(header: Mapping[str, Any], form: type[schema.T], file: epath.Path) -> schema.T:
    """Returns a file's header as a record; raises a DamagedResultsError if it is none of that form."""
    try:
        return schema.parse(json.dumps(header).encode(), form, what="results", fix="delete them")
    except UserError:
        raise damaged_results(file) from None


_FORMS = {"rows": ScoresHeader, "measure": AnswersHeader}


def damaged_results(file: epath.Path) -> DamagedResultsError:
    """Returns the error of a file of scores or answers that is not as it was written."""
    return DamagedResultsError(
        f"Expected results as they were written in {str(file)!r}, got a file that was changed or damaged. "
        "Fix: delete it, and run `elm evaluate` again."
    )
