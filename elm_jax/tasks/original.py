"""The original's ways: switches to what the code of Jang et al. 2023 did with data, all off by default.

empty_renderings  keep rows that render to an empty input or target, or that the template does not apply to
first_rows        take the first rows of the datasets that it took the first rows of, not a permutation's
dbpedia_labels    shift DBpedia's classes by one, because its files count from 1 and its templates from 0
homonyms          read the subtask homonyms of conceptual_combinations twice
swapped_bleu      swap predictions and targets in BLEU
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from elm_jax import names

ROW_SWITCHES = ("empty_renderings", "first_rows", "dbpedia_labels", "homonyms")
"""Switches that change rows."""
SWAPPED_BLEU = "swapped_bleu"
"""The switch that changes a metric, not rows."""
SWITCHES = (*ROW_SWITCHES, SWAPPED_BLEU)


def parse_switches(asked: str | Sequence[str]) -> frozenset[str]:
    """Returns the switches that are on, given one name, several, or "all".

    Raises:
        UserError: If there is no switch of that name.

    >>> sorted(parse_switches(["homonyms", "swapped_bleu"]))
    ['homonyms', 'swapped_bleu']
    """
    asked = (asked,) if isinstance(asked, str) else asked
    for name in asked:
        names.resolve(name, (*SWITCHES, "all"), kind="switch", where="elm_jax.tasks.original")
    return frozenset(SWITCHES if "all" in asked else asked)


def row_switches(asked: str | Sequence[str]) -> tuple[str, ...]:
    """Returns the switches that are on and change rows, in their fixed order."""
    switches = parse_switches(asked)
    return tuple(name for name in ROW_SWITCHES if name in switches)


def shift_classes(
    rows: Iterable[tuple[int, dict[str, Any]]], settings: Mapping[str, Any]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields numbered rows with the class after their own; the last class has none, and no row of it is left.

    Args:
        rows: Numbers and rows.
        settings: The catalogue's: the `column` of the class, and how many `classes` there are.
    """
    column, classes = settings["column"], settings["classes"]
    for number, row in rows:
        if row[column] + 1 < classes:
            yield number, {**row, column: row[column] + 1}
