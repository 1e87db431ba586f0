"""Columns: from a source's row to the row that the templates expect, in plain Python values.

The templates were written for the hub's columns of 2022. Where a file has others, an adapter makes them.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from elm_jax.errors import UserError

Row = Mapping[str, Any]
Adapter = Callable[[Row, str], dict[str, Any]]
"""Takes a row and where it stands (for errors), returns the templates' columns."""

UNLABELLED = -1
"""How the published datasets mark a row whose right answer is withheld."""


def plain(value: Any) -> Any:
    """Returns a value with NumPy's scalars and arrays, bytes and tuples made plain Python, nested ones too.

    >>> plain({"text": b"hi", "label": np.int64(3), "choices": np.array([b"a", b"b"], object)})
    {'text': 'hi', 'label': 3, 'choices': ['a', 'b']}
    """
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"A text should be UTF-8, but {value[:40]!r} came ({error.reason}).") from error
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def unchanged(row: Row, where: str) -> dict[str, Any]:
    """The adapter of sources that have the templates' columns already."""
    return dict(row)


def cosmos_qa_csv(row: Row, where: str) -> dict[str, Any]:
    """CosmosQA's CSV: its label is a text."""
    return {**row, "label": _whole_number(row, "label", where)}


def story_cloze_csv(row: Row, where: str) -> dict[str, Any]:
    """Story Cloze's CSV: other names, and the number of the right ending, 1 or 2, is a text."""
    return {
        "story_id": _value(row, "InputStoryid", where),
        **{f"input_sentence_{n}": _value(row, f"InputSentence{n}", where) for n in range(1, 5)},
        "sentence_quiz1": _value(row, "RandomFifthSentenceQuiz1", where),
        "sentence_quiz2": _value(row, "RandomFifthSentenceQuiz2", where),
        "answer_right_ending": _whole_number(row, "AnswerRightEnding", where),
    }


ADAPTERS: Mapping[str, Adapter] = {
    "unchanged": unchanged,
    "cosmos_qa_csv": cosmos_qa_csv,
    "story_cloze_csv": story_cloze_csv,
}
"""Adapters by the name that the catalogue gives them."""


def adapt(rows: Iterable[Row], adapter: str, *, label: str | None, file: str) -> list[dict[str, Any]]:
    """Returns the rows in the templates' columns; refuses them where `label` marks one as unlabelled.

    `label` is the column of the right answer's number; `file` is how errors call the source.
    """
    adapted = []
    for number, row in enumerate(rows, start=1):
        where = f"{file!r}, row {number}"
        made = ADAPTERS[adapter](plain(row), where)
        if label is not None and _value(made, label, where) in (UNLABELLED, str(UNLABELLED)):
            raise UserError(
                f"{where}: the right answer is withheld ({label} is {UNLABELLED}), so no target can be made "
                "from this split. Choose a labelled one."
            )
        adapted.append(made)
    return adapted


def _value(row: Row, column: str, where: str) -> Any:
    if column not in row:
        raise UserError(f"{where}: column {column!r} is wanted, but these came: {', '.join(map(repr, row))}.")
    return row[column]


def _whole_number(row: Row, column: str, where: str) -> int:
    value = _value(row, column, where)
    try:
        return int(value)
    except (TypeError, ValueError):
        raise UserError(f"{where}: {column} should be a whole number, but {value!r} came.") from None
