"""The original: switches that treat data as the code of Jang et al. 2023 did, all off by default.

empty_renderings  keep rows that render to an empty input or target, or that the template does not apply to
first_rows        take the first rows, not a permutation's, of the datasets of which it took the first
dbpedia_labels    shift DBpedia's classes by one, because its files count from 1 and its templates from 0
homonyms          read the subtask homonyms of conceptual_combinations twice
swapped_bleu      swap predictions and targets in BLEU
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from elm_jax import names

ROW_SWITCHES = ("empty_renderings", "first_rows", "dbpedia_labels", "homonyms")
"""Switches that change rows."""
SWAPPED_BLEU_SWITCH = "swapped_bleu"
"""The switch that changes a metric, not rows."""
SWITCHES = (*ROW_SWITCHES, SWAPPED_BLEU_SWITCH)


def parse_switches(switches: str | Sequence[str]) -> frozenset[str]:
    """Returns the switches that are on, given one name, several, or "all".

    Raises:
        UserError: If there is no switch of that name.

    >>> sorted(parse_switches(["homonyms", "swapped_bleu"]))
    ['homonyms', 'swapped_bleu']
    """
    given = (switches,) if isinstance(switches, str) else switches
    for name in given:
        names.resolve(name, (*SWITCHES, "all"), kind="switch", where="elm_jax.tasks.original")
    return frozenset(SWITCHES if "all" in given else given)


def list_row_switches(switches: str | Sequence[str]) -> tuple[str, ...]:
    """Returns the switches that are on and change rows, in their fixed order."""
    enabled = parse_switches(switches)
    return tuple(name for name in ROW_SWITCHES if name in enabled)


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
