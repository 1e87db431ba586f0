"""Results cache: what was scored or written, a JSON line for every row, in one file a cell.

A cell is a task with what works on it. The first line of a file is its header, whose `stamp` is a cache key:
it stands for all that the rows depend on. The other lines are rows, as `rows.schema.json` beside this file
says. If a file is there already and

    its cache key is the expected one    it is read, and nothing is computed again
    its cache key is another             it is written anew: rows, options, base or expert have changed
    it was changed after it was written  its name is printed, and it is written anew: its checksum is another
    its format is a later one            UserError: a later elm_jax wrote it
    it has another form                  UserError: elm_jax did not write it, so it is left alone
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import GenericAlias
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Int

from elm_jax import names, schema, storage
from elm_jax.data import identity, tokenized_rows
from elm_jax.data.identity import RowsIdentity
from elm_jax.errors import DamagedResultsError, UserError
from elm_jax.evaluation.ensembles import Ensemble
from elm_jax.evaluation.expert_stacks import ExpertStack
from elm_jax.experts import result_files
from elm_jax.experts.lookup import BASE_SCORER, library_finder
from elm_jax.scoring.buckets import PromptWithChoices
from elm_jax.session.workspace import Run

ROWS_PER_GROUP = 4096  # counted once for each of their experts: what is computed between two writes


class Cell(NamedTuple):
    """A task with the scorer that works on it.

    Attributes:
        task: its id.
        scorer: an expert's id, a gate's name or `BASE`.
        rows: the numbers of the rows; all of them if there are none.
        premise: what the answers follow in the place of their prompts, as text; None for the prompts.
    """

    task: str
    scorer: str
    rows: tuple[int, ...] = ()
    premise: str | None = None


CacheKeys = Callable[[Cell], str]
"""Returns the cache key of a cell."""
RowScorers = str | tuple[str, ...]
"""One scorer for a task, or one for each of its rows."""
TaskScorer = RowScorers | Ensemble
"""The same, or several that score every row together."""


def make_cells(scorers: Mapping[str, Iterable[str]]) -> list[Cell]:
    """Returns a cell for every task with each of its scorers, each once."""
    return [Cell(task, scorer) for task, own in scorers.items() for scorer in dict.fromkeys(own)]


def line_schema() -> dict[str, Any]:
    """Returns the JSON schema of a line."""
    return json.loads(Path(__file__).with_name("rows.schema.json").read_text())


def cell_file(
    folder: epath.Path, cell: Cell, row_ids: Sequence[str], kind: str = "", limit: int | None = None
) -> epath.Path:
    """Returns the file of a cell's rows.

    Args:
        folder: of all results.
        cell: whose rows they are.
        row_ids: the ids of the rows of a cell that has some only.
        kind: tells several files of one cell apart.
        limit: on a task's rows. It is in the name, so that trying a few rows does not overwrite all of them.
    """
    dataset, prompt = names.split_id(cell.task)
    place = folder / names.directory_name(dataset) / names.directory_name(prompt)
    if cell.rows:
        place = place / f"rows-{storage.fingerprint(list(row_ids))}"
    limited = "" if limit is None else f"limit_{limit}"
    return place / ".".join(filter(None, (names.directory_name(cell.scorer), kind, limited, "jsonl")))


def sort_by_scorer(cells: Iterable[Cell]) -> list[Cell]:
    """Returns cells in an order in which those of one scorer follow each other."""
    by_scorer: dict[str, list[Cell]] = {}
    for cell in cells:
        by_scorer.setdefault(cell.scorer, []).append(cell)
    return [cell for own in by_scorer.values() for cell in own]


def reading_settings(run: Run) -> dict[str, Any]:
    """Returns what scores depend on beside rows and scorer: the base, and how rows are tokenised."""
    settings: dict[str, Any] = {
        "base": run.base.fingerprint,
        "lengths": vars(run.lengths),
        "vocabulary": run.tokenizer.fingerprint,
    }
    if run.dtype is not None:
        settings["dtype"] = run.dtype
    return settings if run.tokenizer.input_eos else {**settings, "input_eos": False}


def scorer_cache_keys(run: Run, content_addressed: Iterable[str] = ()) -> Callable[[str, str], str]:
    """Returns a function from a scorer, and a key of all else that its results depend on, to a cache key.

    Args:
        run: in whose libraries the scorers are.
        content_addressed: scorers whose names stand for all that they are.
    """
    home_of = library_finder(run.workspace)
    parts: dict[str, list[str]] = {name: [name] for name in (BASE_SCORER, *content_addressed)}

    def cache_key(scorer: str, other: str) -> str:
        if scorer not in parts:
            description = home_of(scorer).describe(scorer)
            parts[scorer] = [scorer, description.spec.base, description.checksum]
        return storage.fingerprint([other, *parts[scorer]])

    return cache_key


def write_cell(where: epath.Path, header: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
    """Writes a cell's header, with a checksum of all, and its rows."""
    storage.write_sealed_lines(where, {"format": storage.FORMAT, **header}, lines)


def read_header(where: epath.Path, cache_key: str) -> dict[str, Any] | None:
    """Returns a file's header, or None if there is no file or its cache key is another.

    Raises:
        DamagedResultsError: the file was changed after it was written.
        UserError: the file is of a later version, or elm_jax did not write it.
    """
    found = _read(where, cache_key)
    return None if found is None else found[0]


def read_cell(
    where: epath.Path, cache_key: str, row: type[schema.T]
) -> tuple[dict[str, Any], list[schema.T]] | None:
    """Returns a file's header and rows, or None if `read_header` does, which raises the same.

    Args:
        where: the file.
        cache_key: the expected one.
        row: the form of a row.
    """
    found = _read(where, cache_key)
    if found is None:
        return None
    header, body = found
    rows = b"[" + b",".join(body.removesuffix(b"\n").split(b"\n")) + b"]"
    try:
        return header, schema.parse(rows, GenericAlias(list, (row,)), what="results", fix="delete them")
    except UserError:
        raise result_files.damaged_results(where) from None


def find_missing(
    run: Run, files: Mapping[Cell, epath.Path], key_of: CacheKeys, *, is_quiet: bool = False
) -> list[Cell]:
    """Returns the cells without results, and prints the names of files that were changed, unless quiet."""
    missing = []
    for cell, where in files.items():
        try:
            header = read_header(where, key_of(cell))
        except DamagedResultsError:
            if not is_quiet:
                _say(run, f"Computed again, because it was changed after it was written: {where}")
            header = None
        if header is None:
            missing.append(cell)
    return missing


def say_changed_tasks(run: Run, identities: Mapping[str, RowsIdentity]) -> None:
    """Prints what differs of tasks since they were last scored in a run, and why they are scored again.

    Args:
        run: with the directory of scores.
        identities: task id -> what its rows are now.
    """
    for task, now in identities.items():
        file = _identity_file(run, task)
        try:
            before = identity.from_json(storage.read_json(file, what="Rows of scores"))
        except UserError:  # none yet, or damaged: what changed is not known
            continue
        changes = before and identity.describe_changes(before, _with_model(run, now))
        if changes:
            _say(run, f"{task} is scored again, because it differs from when it was scored: {changes}.")


def save_identities(run: Run, identities: Mapping[str, RowsIdentity]) -> None:
    """Writes what the rows of tasks were that have been scored."""
    for task, now in identities.items():
        storage.write_json(_identity_file(run, task), _with_model(run, now).to_json())


def _with_model(run: Run, rows: RowsIdentity) -> RowsIdentity:
    return replace(rows, settings={**rows.settings, "base": run.base.fingerprint, "dtype": run.dtype})


def _identity_file(run: Run, task: str) -> epath.Path:
    place = cell_file(run.workspace.scores, Cell(task, BASE_SCORER), ()).parent
    return place / ("rows.json" if run.source.limit is None else f"rows.limit_{run.source.limit}.json")


def _say(run: Run, text: str) -> None:
    run.stages.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _read(where: epath.Path, cache_key: str) -> tuple[dict[str, Any], bytes] | None:
    """Returns a file's header and the bytes of its rows; None if there is no file of this cache key."""
    if not where.exists():
        return None
    header, body, is_whole = storage.read_sealed_lines(where)
    if header is None or not isinstance(header.get("format"), int) or "stamp" not in header:
        raise UserError(
            f"Expected a file of results at {str(where)!r}, got another form. Fix: move it away, or name "
            "another directory."
        )
    if header["format"] > storage.FORMAT:
        raise UserError(
            f"Expected results of format {storage.FORMAT}, got {header['format']} in {str(where)!r}, which a "
            "later elm_jax wrote. Fix: use that one, or name another directory."
        )
    if header["format"] < storage.FORMAT or header["stamp"] != cache_key:
        return None
    if not is_whole:
        raise result_files.damaged_results(where)
    return header, body


def group_cells(
    stack: ExpertStack, missing: Iterable[Cell], row_counts: Mapping[str, int]
) -> list[list[Cell]]:
    """Returns the missing cells of a stack's scorers, task by task, in groups large enough to fill batches.

    Rows are written when all of a group are done: that is what a run that is killed has to do again.

    Args:
        stack: with the scorers that are held.
        missing: cells of any scorers.
        row_counts: task id -> how many rows it has.
    """
    by_task: dict[str, list[Cell]] = {}
    for cell in missing:
        if cell.scorer in stack.slots:
            by_task.setdefault(cell.task, []).append(cell)
    groups: list[list[Cell]] = [[]]
    pairs = 0
    for cells in by_task.values():
        if pairs >= ROWS_PER_GROUP:
            groups.append([])
            pairs = 0
        groups[-1] += cells
        pairs += sum(count_rows(cell, row_counts) for cell in cells)
    return [group for group in groups if group]


def replace_prompt_by_premise(
    run: Run, cell: Cell, rows: Sequence[PromptWithChoices]
) -> Sequence[PromptWithChoices]:
    """Returns rows of a cell's task, with the cell's premise for a prompt if it has one."""
    if cell.premise is None:
        return rows
    premise = tokenized_rows.tokenize_inputs([cell.premise], run.tokenizer, run.lengths)[0]
    return [PromptWithChoices(premise, row.answers) for row in rows]


def flatten_cells(
    run: Run,
    group: Sequence[Cell],
    stack: ExpertStack,
    prompts: Mapping[str, Sequence[PromptWithChoices]],
) -> tuple[list[PromptWithChoices], Int[np.ndarray, "P 2"]]:
    """Returns the rows of a group's tasks, end to end, and (row, slot) of every cell, cell after cell.

    Answers that follow a premise are rows of their own.
    """
    starts: dict[tuple[str, str | None], int] = {}
    rows: list[PromptWithChoices] = []
    pairs = []
    for cell in group:
        own = prompts[cell.task]
        start = starts.setdefault((cell.task, cell.premise), len(rows))
        if start == len(rows):
            rows += replace_prompt_by_premise(run, cell, own)
        numbers = np.array(cell.rows or range(len(own)), np.int64)
        pairs.append(np.stack([start + numbers, np.full(len(numbers), stack.slots[cell.scorer])], axis=1))
    return rows, np.concatenate(pairs)


def count_rows(cell: Cell, row_counts: Mapping[str, int]) -> int:
    """Returns how many rows a cell has, by those of its task."""
    return len(cell.rows) or row_counts[cell.task]
