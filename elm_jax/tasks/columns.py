"""Columns: turns a source's rows into the columns that the templates read, as plain Python values.

The templates were written for the hub's columns of 2022. If a source has others, an adapter makes these.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from elm_jax.errors import UserError

SourceRow = Mapping[str, Any]
RowConverter = Callable[[SourceRow, str], dict[str, Any]]
"""Takes a row and its place (for errors), and returns the templates' columns."""

# TREC's classes as TFDS and the hub number them; PromptSource has templates for both.
_TREC = {
    "tfds_coarse": "DESC ENTY ABBR HUM NUM LOC",
    "tfds_fine": "manner cremat animal exp ind gr title def date reason event state desc count other letter "
    "religion food country color termeq city body dismed mount money product period substance sport plant "
    "techmeth volsize instru abb speed word lang perc code dist temp symbol ord veh weight currency",
    "hub_coarse": "ABBR ENTY DESC HUM LOC NUM",
    "hub_fine": "ABBR:abb ABBR:exp ENTY:animal ENTY:body ENTY:color ENTY:cremat ENTY:currency ENTY:dismed "
    "ENTY:event ENTY:food ENTY:instru ENTY:lang ENTY:letter ENTY:other ENTY:plant ENTY:product ENTY:religion "
    "ENTY:sport ENTY:substance ENTY:symbol ENTY:techmeth ENTY:termeq ENTY:veh ENTY:word DESC:def DESC:desc "
    "DESC:manner DESC:reason HUM:gr HUM:ind HUM:title HUM:desc LOC:city LOC:country LOC:mount LOC:other "
    "LOC:state NUM:code NUM:count NUM:date NUM:dist NUM:money NUM:ord NUM:other NUM:period NUM:perc "
    "NUM:speed NUM:temp NUM:volsize NUM:weight",
}
TREC_CLASSES: Mapping[str, Sequence[str]] = {name: classes.split() for name, classes in _TREC.items()}


def to_plain(value: Any) -> Any:
    """Returns a value with NumPy's scalars and arrays, bytes and tuples as plain Python, nested ones too.

    >>> to_plain({"text": b"hi", "label": np.int64(3), "choices": np.array([b"a", b"b"], object)})
    {'text': 'hi', 'label': 3, 'choices': ['a', 'b']}
    """
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value  # an image or a sound: a template that reads it is refused
    if isinstance(value, np.ndarray):
        return to_plain(value.tolist())
    if isinstance(value, np.generic):
        return to_plain(value.item())
    if isinstance(value, Mapping):
        return {to_plain(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if hasattr(value, "to_list"):  # TensorFlow's ragged arrays
        return to_plain(value.to_list())
    return value


def unchanged(row: SourceRow, where: str) -> dict[str, Any]:
    """Returns a row that has the templates' columns already."""
    return dict(row)


def cosmos_qa_csv(row: SourceRow, where: str) -> dict[str, Any]:
    """CosmosQA's CSV: its label is a text."""
    return {**row, "label": _whole_number(row, "label", where)}


def story_cloze_csv(row: SourceRow, where: str) -> dict[str, Any]:
    """Story Cloze's CSV: other names, and the number of the right ending, 1 or 2, is a text."""
    return {
        "story_id": _value(row, "InputStoryid", where),
        **{f"input_sentence_{n}": _value(row, f"InputSentence{n}", where) for n in range(1, 5)},
        "sentence_quiz1": _value(row, "RandomFifthSentenceQuiz1", where),
        "sentence_quiz2": _value(row, "RandomFifthSentenceQuiz2", where),
        "answer_right_ending": _whole_number(row, "AnswerRightEnding", where),
    }


def label_from_one(row: SourceRow, where: str) -> dict[str, Any]:
    """The CSV files of Zhang et al. (2015): labels are texts and count from 1."""
    return {**row, "label": _whole_number(row, "label", where) - 1}


def ag_news_tfds(row: SourceRow, where: str) -> dict[str, Any]:
    """TFDS's AG News: the text is in two columns."""
    title, description = (_value(row, name, where) for name in ("title", "description"))
    return {"text": f"{title} {description}", "label": _value(row, "label", where)}


def anli_tfds(row: SourceRow, where: str) -> dict[str, Any]:
    """TFDS's ANLI: the premise is called context."""
    return {**row, "premise": _value(row, "context", where)}


def winogrande_tfds(row: SourceRow, where: str) -> dict[str, Any]:
    """TFDS's Winogrande: the answer, "1" or "2", is a label of 0 or 1."""
    label = _whole_number(row, "label", where)
    return {**row, "answer": "" if label < 0 else str(label + 1)}


def hellaswag_tfds(row: SourceRow, where: str) -> dict[str, Any]:
    """TFDS's HellaSwag: the context has another name, its halves are not there, the label is a number."""
    label = _whole_number(row, "label", where)
    return {**row, "ctx": _value(row, "context", where), "label": "" if label < 0 else str(label)}


def trec_tfds(row: SourceRow, where: str) -> dict[str, Any]:
    """TFDS's TREC: the classes as the older templates number them, and as the newer ones do."""
    coarse = _trec_class(row, "label-coarse", "tfds_coarse", where)
    return _trec_row(row, coarse, _trec_class(row, "label-fine", "tfds_fine", where), where)


def trec_hub(row: SourceRow, where: str) -> dict[str, Any]:
    """The hub's TREC: the same, from the newer numbers."""
    coarse, fine = _trec_class(row, "fine_label", "hub_fine", where).split(":")
    return _trec_row(row, coarse, fine, where)


def wiki_hop_hub(row: SourceRow, where: str) -> dict[str, Any]:
    """The hub's WikiHop: some copies call the question query, as the original files do."""
    return dict(row) if "question" in row else {**row, "question": _value(row, "query", where)}


def bigbench_hub(row: SourceRow, where: str) -> dict[str, Any]:
    """The hub's BIG-bench, whose texts are the official code's."""
    scores = list(_value(row, "multiple_choice_scores", where))
    return {
        "text": _value(row, "inputs", where),
        "choices": _value(row, "multiple_choice_targets", where),
        "label": scores.index(1) if scores.count(1) == 1 else None,
    }


ROW_CONVERTERS: Mapping[str, RowConverter] = {
    adapter.__name__: adapter
    for adapter in (
        unchanged,
        cosmos_qa_csv,
        story_cloze_csv,
        label_from_one,
        ag_news_tfds,
        anli_tfds,
        winogrande_tfds,
        hellaswag_tfds,
        trec_tfds,
        trec_hub,
        wiki_hop_hub,
        bigbench_hub,
    )
}
"""Adapters by the name that the catalogue gives them."""


def convert_rows(
    rows: Iterable[SourceRow],
    adapter: str,
    *,
    file: str,
    columns: Sequence[str] = (),
    numbers: Iterable[int] | None = None,
    is_part: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yields the rows with the templates' columns.

    Args:
        rows: A source's rows.
        adapter: One of `ROW_CONVERTERS`.
        file: The source's name in errors.
        columns: Columns to keep, as far as a row has them; default: all columns.
        numbers: Numbers of the rows in the source, from 0; default: consecutive.
        is_part: Whether others of the source's rows may have a column that all of these lack.

    Raises:
        UserError: If a row lacks what the adapter reads, or if no row has one of the columns.
    """
    adapt, absent, row = ROW_CONVERTERS[adapter], set(columns), {}
    for number, row in zip(itertools.count() if numbers is None else numbers, rows, strict=False):
        made = adapt(to_plain(row), f"{file!r}, row {number + 1}")
        absent -= made.keys()
        yield {name: made[name] for name in columns if name in made} if columns else made
    if absent and row and not is_part:
        raise UserError(
            f"{file!r}: expected column {sorted(absent)[0]!r}, got {', '.join(map(repr, row))}. Fix: rename "
            "the column, or use another source."
        )


def _trec_class(row: SourceRow, column: str, numbering: str, where: str) -> str:
    number = _whole_number(row, column, where)
    if not 0 <= number < len(TREC_CLASSES[numbering]):
        most = len(TREC_CLASSES[numbering]) - 1
        raise UserError(
            f"{where}: expected a class of TREC, 0 to {most}, as {column}, got {number}. Fix: use TREC's own "
            "rows."
        )
    return TREC_CLASSES[numbering][number]


def _trec_row(row: SourceRow, coarse: str, fine: str, where: str) -> dict[str, Any]:
    if f"{coarse}:{fine}" not in TREC_CLASSES["hub_fine"]:
        raise UserError(
            f"{where}: expected a fine class of TREC's {coarse!r}, got {fine!r}. Fix: use TREC's own rows."
        )
    return {
        "text": _value(row, "text", where),
        "label_coarse": TREC_CLASSES["tfds_coarse"].index(coarse),
        "label_fine": TREC_CLASSES["tfds_fine"].index(fine),
        "coarse_label": TREC_CLASSES["hub_coarse"].index(coarse),
        "fine_label": TREC_CLASSES["hub_fine"].index(f"{coarse}:{fine}"),
    }


def _value(row: SourceRow, column: str, where: str) -> Any:
    if column not in row:
        raise UserError(
            f"{where}: expected column {column!r}, got {', '.join(map(repr, row))}. Fix: rename the column, "
            "or use another source."
        )
    return row[column]


def _whole_number(row: SourceRow, column: str, where: str) -> int:
    value = _value(row, column, where)
    try:
        return int(value)
    except (TypeError, ValueError):
        raise UserError(
            f"{where}: expected a whole number as {column}, got {value!r}. Fix: correct the row."
        ) from None
