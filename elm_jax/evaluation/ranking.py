"""Ranking: the scores of answer choices of every wanted expert on every wanted task, row by row.

Scores are kept one file a cell (`evaluation.results_cache`), so a run that was killed repeats nothing that is
whole, and an expert added tomorrow is scored alone. They are read when they are needed and held no longer:
those of all of the paper's experts on all of its rows are 37 million. A method is a choice of scorers for
each task; several methods that choose the same one share its scores. Odd rows:

    no choices in any row of a task                it is answered in free text (`evaluation.generation`)
    no choices in some rows, or none is the target these rows are left out, as the source's policy says
    one choice                                     it is scored, and its row left out of every result
    choices of equal tokens                        they score the same, and the row counts 1 / number of them
    an empty prompt                                it is scored after end-of-sequence alone
    a choice longer than the limit                 it is cut, and then ends with end-of-sequence
    a task without rows                            UserError that names the task
    scores that are NaN or infinite                UserError that names the expert and the row
    a file that was changed after it was written   it is named and written anew
    results of another version in the directory    as `evaluation.results_cache` says
"""

import math
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from annotated_types import MinLen
from etils import epath

from elm_jax import schema, storage
from elm_jax.errors import UserError
from elm_jax.evaluation import ensembles, results_cache
from elm_jax.evaluation import normalization as normalizations
from elm_jax.evaluation.config import ScoringOptions
from elm_jax.evaluation.ensembles import Ensemble
from elm_jax.evaluation.expert_stacks import load_stacks
from elm_jax.evaluation.results_cache import Cell, TaskScorer
from elm_jax.evaluation.tasks import EvaluationTask
from elm_jax.experts import result_files
from elm_jax.experts.result_files import ScoresHeader
from elm_jax.launch import hosts
from elm_jax.records import PromptedExample, TaskScores
from elm_jax.reporting import metrics
from elm_jax.reporting.metrics import CorrectCount
from elm_jax.scoring import rank
from elm_jax.scoring import scorer as engine
from elm_jax.scoring.buckets import PromptWithChoices
from elm_jax.session.workspace import Run

Tasks = Mapping[str, EvaluationTask]


@dataclass(frozen=True)
class _ScoresRow(schema.Form):
    """A line of a file of scores."""

    row: str
    label: int
    prediction: int
    scores: Annotated[tuple[float, ...], MinLen(1)]


@dataclass(frozen=True, repr=False)
class ScoreStore:
    """Scores of cells, which are read from a run's directory each time they are asked for.

    Attributes:
        run: whose directory it is.
        tasks: task id -> its rows.
        cache_keys: of every cell that is there.
        normalization: of the scores.
    """

    run: Run
    tasks: Tasks
    cache_keys: Mapping[Cell, str]
    normalization: str = "sum"

    def __getitem__(self, cell: Cell) -> TaskScores:
        where = self._file(cell)
        found = results_cache.read_cell(where, self.cache_keys[cell], _ScoresRow)
        if found is None:
            raise _missing_file(cell)
        header, lines = found
        counted = result_files.parse_header(header, ScoresHeader, where)
        if not _are_sound(counted, lines, self.tasks[cell.task].examples_of(cell.rows)):
            raise result_files.damaged_results(where)
        return TaskScores(
            task=cell.task,
            method=cell.scorer,
            row_ids=tuple(line.row for line in lines),
            scores=tuple(line.scores for line in lines),
            predictions=tuple(line.prediction for line in lines),
            labels=tuple(line.label for line in lines),
        )

    def __contains__(self, cell: object) -> bool:
        return cell in self.cache_keys

    def __repr__(self) -> str:
        return f"ScoreStore({len(self.cache_keys)} cells)"

    def count(self, cell: Cell, left_out: Sequence[str] = ()) -> CorrectCount:
        """Returns how many rows are right, without those of these ids; a file's header has it of all."""
        if left_out:
            return metrics.count_correct(drop_rows(self[cell], left_out))
        where = self._file(cell)
        header = results_cache.read_header(where, self.cache_keys[cell])
        if header is None:
            raise _missing_file(cell)
        counted = result_files.parse_header(header, ScoresHeader, where)
        return CorrectCount(cell.task, cell.scorer, counted.rows, counted.right, tied=counted.tied)

    def _file(self, cell: Cell) -> epath.Path:
        return _file(self.run, cell, self.tasks, self.normalization)


def score_cells(
    run: Run, cells: Sequence[Cell], tasks: Tasks, options: ScoringOptions | None = None
) -> ScoreStore:
    """Scores the cells of ranked tasks that have no scores yet.

    If several hosts call this together, each scores its share, and all return everything, which lies in a
    directory that all see. Other normalizations are computed from sums, which are kept too.

    Args:
        run: with the base, the libraries and the directory of scores.
        cells: tasks with their scorers.
        tasks: task id -> its rows.
        options: how they are scored.

    Returns:
        The scores of all cells.

    Raises:
        UserError: as the table above says.
    """
    options = options or ScoringOptions()
    normalization = options.normalization
    bare = normalizations.premise_cells(run, cells, tasks, normalization)
    sums = _score_sums(run, [*cells, *(each for own in bare for each in own)], tasks, options)
    if normalization == "sum":
        return sums
    key_of = _cache_keys(run, tasks, options.content_addressed, normalization)
    premises = dict(zip(cells, bare, strict=True))
    cache_keys = {cell: key_of(cell, [each.premise for each in own]) for cell, own in premises.items()}
    store = ScoreStore(run, tasks, cache_keys, normalization)
    files = {cell: _file(run, cell, tasks, normalization) for cell in premises}
    missing = results_cache.find_missing(run, files, cache_keys.__getitem__) if hosts.is_primary() else ()
    for cell in missing:
        scores = normalizations.normalize_cell(
            cell, premises[cell], tasks[cell.task], sums.__getitem__, normalization
        )
        header = _header(cell, cache_keys[cell], normalization)
        _write(files[cell], _task_scores(cell, tasks[cell.task], scores), header)
    hosts.barrier("scores are made of sums")
    return store


def missing_cells(
    run: Run, cells: Sequence[Cell], tasks: Tasks, content_addressed: Collection[str] = ()
) -> list[Cell]:
    """Returns the cells that have no scores yet, or scores that were changed."""
    files = {cell: _file(run, cell, tasks, "sum") for cell in cells}
    return results_cache.find_missing(run, files, _cache_keys(run, tasks, content_addressed), is_quiet=True)


def load_or_compute_scores(scores: ScoreStore, task: str, scorer: TaskScorer, method: str) -> TaskScores:
    """Returns a method's scores of a task, put together if they are not those of one scorer."""
    if isinstance(scorer, str):
        return replace(scores[Cell(task, scorer)], method=method)
    if isinstance(scorer, Ensemble):
        members = [scores[cell] for cell in cells_of_scorer(task, scorer)]
        return replace(ensembles.combine_task_scores(scorer, members), method=method)
    places: dict[tuple[int, str], tuple[TaskScores, int]] = {}
    for cell in available_cells(scores, task, scorer):
        own = scores[cell]
        places |= {
            (row, cell.scorer): (own, place) for place, row in enumerate(cell.rows or range(len(scorer)))
        }
    picked = [places[row, name] for row, name in enumerate(scorer)]
    return TaskScores(
        task=task,
        method=method,
        row_ids=tuple(part.row_ids[place] for part, place in picked),
        scores=tuple(part.scores[place] for part, place in picked),
        predictions=tuple(part.predictions[place] for part, place in picked),
        labels=tuple(part.labels[place] for part, place in picked),
    )


def available_cells(store: Container[Cell], task: str, scorer: TaskScorer) -> list[Cell]:
    """Returns the cells that a method's result is put together of: whole tasks, if these are there."""
    cells = cells_of_scorer(task, scorer)
    return [cell if cell in store else Cell(task, cell.scorer) for cell in cells]


def cells_of_scorer(task: str, scorer: TaskScorer) -> list[Cell]:
    """Returns the cells that have to be scored if a method has this scorer for a task."""
    if isinstance(scorer, str):
        return [Cell(task, scorer)]
    if isinstance(scorer, Ensemble):
        return [Cell(task, member) for member in scorer.members]
    by_scorer: dict[str, list[int]] = {}
    for row, name in enumerate(scorer):
        by_scorer.setdefault(name, []).append(row)
    return [Cell(task, name, tuple(rows)) for name, rows in by_scorer.items()]


def drop_rows(scores: TaskScores, left_out: Sequence[str]) -> TaskScores:
    """Returns the scores of all rows but those of these ids."""
    if not left_out:
        return scores
    kept = [place for place, row in enumerate(scores.row_ids) if row not in left_out]
    return replace(
        scores,
        **{
            name: tuple(getattr(scores, name)[place] for place in kept)
            for name in ("row_ids", "scores", "predictions", "labels")
        },
    )


def _score_sums(run: Run, cells: Sequence[Cell], tasks: Tasks, options: ScoringOptions) -> ScoreStore:
    """Returns the summed log-probabilities of every cell's answers, after scoring those that are missing."""
    key_of = _cache_keys(run, tasks, options.content_addressed)
    cache_keys = {cell: key_of(cell) for cell in cells}
    files = {cell: _file(run, cell, tasks, "sum") for cell in cache_keys}
    missing = results_cache.find_missing(run, files, key_of)
    hosts.barrier("what lacks scores is known")
    prompts = {task: tasks[task].prompts for task in dict.fromkeys(cell.task for cell in missing)}
    row_counts = {task: len(own) for task, own in prompts.items()}
    token_counts = {task: [_count_tokens(row) for row in own] for task, own in prompts.items()}
    totals = {task: sum(own) for task, own in token_counts.items()}
    share = hosts.shard_by_cost(
        results_cache.sort_by_scorer(missing),
        lambda cell: sum(token_counts[cell.task][row] for row in cell.rows) or totals[cell.task],
    )
    total = sum(results_cache.count_rows(cell, row_counts) for cell in share)
    rows = [row for own in prompts.values() for row in own]
    shapes = engine.choose_shapes_for(run.base.params, rows, experts=total / max(1, len(rows)))
    done = 0
    with run.stages.stage("score answer choices", total) as advance:
        scorers = [cell.scorer for cell in share]
        for stack in load_stacks(run, scorers, options.experts_at_once, options.gates):
            for group in results_cache.group_cells(stack, share, row_counts):
                flat, pairs = results_cache.flatten_cells(run, group, stack, prompts)
                scores = engine.score_rows(
                    run.base.config,
                    stack.params,
                    flat,
                    stack.experts,
                    pairs,
                    batch_tokens=options.batch_tokens,
                    shapes=shapes,
                    stacked=stack.stacked,
                    progress=lambda rows_done, _, before=done: advance(before + rows_done, ""),
                )
                start = 0
                for cell in group:
                    end = start + results_cache.count_rows(cell, row_counts)
                    scored = _task_scores(cell, tasks[cell.task], scores[start:end])
                    _write(files[cell], scored, _header(cell, cache_keys[cell]))
                    start = end
                done += len(scores)
    hosts.barrier("scores are kept")
    for cell in missing:
        if results_cache.read_header(files[cell], cache_keys[cell]) is None:
            raise UserError(
                f"Expected scores of {cell.scorer!r} on {cell.task!r} by another process, got none. Fix: let "
                "all processes see one directory."
            )
    return ScoreStore(run, tasks, cache_keys)


def _task_scores(cell: Cell, task: EvaluationTask, scores: Sequence[np.ndarray]) -> TaskScores:
    """Returns the record of a cell's scores; raises a UserError if some are no numbers."""
    examples = task.examples_of(cell.rows)
    for example, own in zip(examples, scores, strict=True):
        if not np.isfinite(own).all():
            raise UserError(
                f"Expected finite scores of {cell.scorer!r}, got NaN or infinity for row {example.row_id!r}. "
                "Fix: train the expert again, or `elm experts remove` it."
            )
    return TaskScores(
        task=cell.task,
        method=cell.scorer,
        row_ids=tuple(example.row_id for example in examples),
        scores=tuple(tuple(float(each) for each in row) for row in scores),
        predictions=tuple(rank.predict(row) for row in scores),
        labels=tuple(-1 if example.label is None else example.label for example in examples),
    )


def _count_tokens(row: PromptWithChoices) -> int:
    """Returns how many tokens a row has, of prompt and answers: what hosts share evenly."""
    return len(row.prompt) + sum(map(len, row.answers))


def _cache_keys(
    run: Run, tasks: Tasks, content_addressed: Collection[str], normalization: str = "sum"
) -> Callable[..., str]:
    """Returns the cache key of a cell's scores: of base, rows, lengths, normalization and scorer."""
    settings = results_cache.reading_settings(run)
    # The form of the header is in the key, so that a file with another one is written anew.
    settings |= {"score": normalization, "head": 3}
    if normalization == "contextual":
        settings["formula"] = 2  # it was another one before
    task_keys = {
        name: storage.fingerprint({**settings, "rows": task.row_ids(), **task.identity.digests.columns})
        for name, task in tasks.items()
    }
    scorer_key = results_cache.scorer_cache_keys(run, content_addressed)

    def key(cell: Cell, premises: Sequence[str | None] = ()) -> str:
        read = [each for each in (cell.premise, *premises) if each]
        # Without a text that stands for a prompt, the key is that of the first version.
        own = task_keys[cell.task]
        return scorer_key(cell.scorer, storage.fingerprint([own, read]) if read else own)

    return key


def _file(run: Run, cell: Cell, tasks: Tasks, normalization: str) -> epath.Path:
    row_ids = tasks[cell.task].row_ids(cell.rows) if cell.rows else ()
    kind = normalizations.score_file_tag(cell, normalization)
    return results_cache.cell_file(run.workspace.scores, cell, row_ids, kind, run.source.limit)


def _header(cell: Cell, cache_key: str, normalization: str = "sum") -> dict[str, str]:
    score = normalization if cell.premise is None else "without_prompt"
    premise = {"premise": cell.premise} if cell.premise else {}
    return {"task": cell.task, "expert": cell.scorer, "stamp": cache_key, "score": score, **premise}


def _write(where: epath.Path, scores: TaskScores, header: Mapping[str, str]) -> None:
    counted = metrics.count_correct(scores)
    lines = [
        vars(_ScoresRow(*line))
        for line in zip(scores.row_ids, scores.labels, scores.predictions, scores.scores, strict=True)
    ]
    counts = {"rows": counted.n, "right": counted.right, "tied": counted.tied}
    results_cache.write_cell(where, {**header, **counts}, lines)


def _are_sound(
    header: ScoresHeader, lines: Sequence[_ScoresRow], examples: Sequence[PromptedExample]
) -> bool:
    """Tells whether lines are scores of these very rows, with what follows from them."""
    if not header.rows == len(lines) == len(examples):
        return False
    for line, example in zip(lines, examples, strict=True):
        label = -1 if example.label is None else example.label
        if (line.row, line.label, len(line.scores)) != (example.row_id, label, len(example.choices)):
            return False
        if line.prediction != rank.predict(np.asarray(line.scores)):
            return False
    return math.isclose(header.right, sum(map(_credit, lines)))


def _credit(line: _ScoresRow) -> float:
    best = max(line.scores)
    return (line.scores[line.label] == best) / line.scores.count(best)


def _missing_file(cell: Cell) -> UserError:
    return UserError(
        f"Expected scores of {cell.scorer!r} on {cell.task!r}, got no file or another one. Fix: let nothing "
        "else write to this directory, and evaluate again."
    )
