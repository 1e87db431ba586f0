"""Rows: what was scored or written, a JSON line for every row, in one file a cell.

A cell is a task with what works on it. The first line of a file is its head, with a stamp that stands for all
that the rows depend on; the other lines are rows, as `rows.schema.json` beside this file says. Of a file that
is there already

    its stamp is the wanted one          it is kept, and nothing is done again
    its stamp is another                 it is written anew: rows, options, base or expert have changed
    its format is a later one            UserError: a later elm_jax wrote it, which may know better
    it has another form                  UserError: it is nobody's that elm_jax knows, so it stays as it is
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Int

from elm_jax import names, storage
from elm_jax.errors import UserError
from elm_jax.evaluation.expert_stacks import ExpertStack
from elm_jax.experts.lookup import BASE, homes
from elm_jax.scoring.buckets import PromptWithChoices
from elm_jax.session.workspace import Run

ROWS_PER_GROUP = 4096  # rows, counted once for each of their experts, that are worked on between two writes


class Cell(NamedTuple):
    """A task and what works on it, on all of its rows or on those of these numbers."""

    task: str
    scorer: str
    rows: tuple[int, ...] = ()
    prompted: bool = True  # whether the answers follow their prompts, or nothing


def make_cells(wanted: Mapping[str, Iterable[str]]) -> list[Cell]:
    """Returns the cells of tasks with all that is to work on them, each once."""
    return [Cell(task, scorer) for task, scorers in wanted.items() for scorer in dict.fromkeys(scorers)]


def line_schema() -> dict[str, Any]:
    """Returns the JSON schema of a line."""
    return json.loads(Path(__file__).with_name("rows.schema.json").read_text())


def cell_file(
    folder: epath.Path, cell: Cell, row_ids: Sequence[str], kind: str = "", limit: int | None = None
) -> epath.Path:
    """Returns where a cell's rows lie; `kind` tells several files of one cell apart.

    So does the `limit` of a task's rows: to try something on a few must not cost what all of them took.
    """
    dataset, prompt = names.split_id(cell.task)
    place = folder / names.directory_name(dataset) / names.directory_name(prompt)
    if cell.rows:
        place = place / f"rows-{storage.fingerprint([row_ids[row] for row in cell.rows])}"
    limited = "" if limit is None else f"limit_{limit}"
    return place / ".".join(filter(None, (names.directory_name(cell.scorer), kind, limited, "jsonl")))


CacheKeys = Callable[[Cell], str]


def sort_by_scorer(cells: Iterable[Cell]) -> list[Cell]:
    """Returns cells in an order in which those of one scorer follow each other."""
    order: dict[str, list[Cell]] = {}
    for cell in cells:
        order.setdefault(cell.scorer, []).append(cell)
    return [cell for own in order.values() for cell in own]


def reading_settings(run: Run) -> dict[str, Any]:
    """Returns what scores depend on beside rows and scorer: the base, and how rows are read."""
    told: dict[str, Any] = {"base": run.base.fingerprint, "lengths": vars(run.lengths)}
    if run.dtype is not None:
        told["dtype"] = run.dtype
    return told if run.pieces.input_eos else {**told, "input_eos": False}


def scorer_cache_keys(run: Run, named: Iterable[str] = ()) -> Callable[[str, str], str]:
    """Returns what stamps a scorer's work, given the stamp of everything else that it depends on.

    `named` are scorers whose names stand for all that they are.
    """
    home_of, known = homes(run.workspace), {}
    known |= {name: [name] for name in (BASE, *named)}

    def stamp(scorer: str, other: str) -> str:
        if scorer not in known:
            about = home_of(scorer).describe(scorer)
            known[scorer] = [scorer, about.spec.base, about.checksum]
        return storage.fingerprint([other, *known[scorer]])

    return stamp


def write_cell(where: epath.Path, head: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
    """Writes a cell's head and rows."""
    storage.write_jsonl(where, [{"format": storage.FORMAT, **head}, *lines])


def read_header(where: epath.Path, stamp: str) -> dict[str, Any] | None:
    """Returns a file's head, None if there is no file or its stamp is another; see above for others."""
    if not where.exists():
        return None
    head = storage.read_first_line(where)
    if head is None or not isinstance(head.get("format"), int) or "stamp" not in head:
        raise UserError(
            f"A file of results is wanted at {str(where)!r}, but what lies there has another form. Move it "
            "away, or name another directory."
        )
    if head["format"] > storage.FORMAT:
        raise UserError(
            f"Results of format {storage.FORMAT} are wanted, but {str(where)!r} has format {head['format']}: "
            "a later elm_jax wrote it. Use that one, or name another directory."
        )
    return None if head["format"] < storage.FORMAT or head["stamp"] != stamp else head


def read_cell(
    where: epath.Path, stamp: str, columns: Sequence[str]
) -> tuple[dict[str, Any], list[Any]] | None:
    """Returns a file's head and rows, None where `head_of` does; rows that were changed are a UserError."""
    head = read_header(where, stamp)
    if head is None:
        return None
    found = storage.read_jsonl(where, what="A file of results")
    if any(row.keys() != set(columns) for row in found[1:]):
        raise UserError(
            f"Rows of {', '.join(columns)} are wanted in {str(where)!r}, but it has others: it was changed "
            "after it was written. Delete it."
        )
    return head, found[1:]


def group_cells(
    stack: ExpertStack, missing: Iterable[Cell], rows: Mapping[str, Sequence[Any]]
) -> list[list[Cell]]:
    """Returns the missing cells of a stack's scorers, task by task, enough of them together to fill batches.

    Their rows are written when all of a group is done: what a run that is killed has to do again.
    """
    by_task: dict[str, list[Cell]] = {}
    for cell in missing:
        if cell.scorer in stack.places:
            by_task.setdefault(cell.task, []).append(cell)
    found: list[list[Cell]] = [[]]
    pairs = 0
    for task, cells in by_task.items():
        if pairs >= ROWS_PER_GROUP:
            found.append([])
            pairs = 0
        found[-1] += cells
        pairs += sum(len(cell.rows) or len(rows[task]) for cell in cells)
    return [group for group in found if group]


def flatten_cells(
    group: Sequence[Cell], stack: ExpertStack, rows: Mapping[str, Sequence[PromptWithChoices]], eos: int
) -> tuple[list[PromptWithChoices], Int[np.ndarray, "P 2"]]:
    """Returns the rows of a group's tasks, end to end, and (row, scorer) of every cell, cell after cell.

    Answers that stand without their prompts are rows of their own, after a single end-of-sequence.
    """
    first: dict[tuple[str, bool], int] = {}
    every: list[PromptWithChoices] = []
    pairs = []
    for cell in group:
        at = first.setdefault((cell.task, cell.prompted), len(every))
        if at == len(every):
            own = rows[cell.task]
            every += own if cell.prompted else [PromptWithChoices([eos], row.answers) for row in own]
        numbers = np.array(cell.rows or range(len(rows[cell.task])), np.int64)
        pairs.append(np.stack([at + numbers, np.full(len(numbers), stack.places[cell.scorer])], axis=1))
    return every, np.concatenate(pairs)
