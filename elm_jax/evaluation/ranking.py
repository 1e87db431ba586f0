"""Scores: every wanted expert on every wanted task, row by row, and what each method makes of that.

Scores are kept one file a cell (`evaluation.results_cache`), so a run that was killed repeats nothing that is
whole, and an expert added tomorrow is scored alone. They are read when they are wanted and held no longer:
those of all of the paper's experts on all of its rows are 37 million. A method is a choice of scorers for
each task; several methods that choose the same one share its scores. What is odd about a row has an outcome
of its own:

    no choices in any row of a task                it is answered in free text (`evaluation.generation`)
    no choices in some rows, or none is the target UserError that names the row
    one choice                                     it is scored, and right
    equal choices                                  they score the same, and the first of them is meant
    an empty prompt                                it is scored after end-of-sequence alone
    a choice longer than the limit                 it is cut, and then ends with end-of-sequence
    a task without rows                            UserError that names the task
    scores that are no numbers                     UserError that names the expert and the row
    results of another version in the directory    as `evaluation.results_cache` says
"""

from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from etils import epath

from elm_jax import names, storage
from elm_jax.data import task_rows
from elm_jax.errors import UserError
from elm_jax.evaluation import results_cache
from elm_jax.evaluation.expert_stacks import MAX_STACKED_EXPERTS, load_stacks
from elm_jax.evaluation.results_cache import Cell
from elm_jax.evaluation.scorer_selection import TaskScorer
from elm_jax.launch import hosts
from elm_jax.records import PromptedExample, TaskScores, TaskSpec
from elm_jax.reporting import metrics
from elm_jax.reporting.metrics import CorrectCount
from elm_jax.routing.gates import Gated
from elm_jax.scoring import rank
from elm_jax.scoring import scorer as engine
from elm_jax.scoring.buckets import PromptWithChoices
from elm_jax.session.workspace import Run

COLUMNS: Sequence[str] = ("row", "label", "prediction", "scores")


@dataclass(frozen=True)
class ScoreStore:
    """Scores of cells, which are read from a run's directory each time they are asked for."""

    run: Run
    examples: Mapping[str, Sequence[PromptedExample]]  # by task
    stamps: Mapping[Cell, str]
    by: str = "sum"

    def __getitem__(self, cell: Cell) -> TaskScores:
        where = _where(self.run, cell, self.examples[cell.task], self.by)
        kept = results_cache.read_cell(where, self.stamps[cell], COLUMNS)
        if kept is None:
            raise UserError(_gone(cell))
        ids, labels, predictions, scores = (tuple(row[name] for row in kept[1]) for name in COLUMNS)
        return TaskScores(cell.task, cell.scorer, ids, tuple(map(tuple, scores)), predictions, labels)

    def count(self, cell: Cell, left_out: Sequence[str] = ()) -> CorrectCount:
        """Returns how many rows are right, without those of these ids; a file's head says it of all."""
        if left_out:
            return metrics.count_correct(drop_rows(self[cell], left_out))
        where = _where(self.run, cell, self.examples[cell.task], self.by)
        head = results_cache.read_header(where, self.stamps[cell])
        if head is None:
            raise UserError(_gone(cell))
        return CorrectCount(cell.task, cell.scorer, head["rows"], head["right"])

    def __contains__(self, cell: object) -> bool:
        return cell in self.stamps


def score_cells(
    run: Run,
    cells: Sequence[Cell],
    specs: Sequence[TaskSpec],
    *,
    batch_tokens: int = engine.BATCH_TOKENS,
    at_once: int = MAX_STACKED_EXPERTS,
    by: str = "sum",
    gated: Mapping[str, Gated] | None = None,
    named: Collection[str] = (),
) -> ScoreStore:
    """Scores cells of tasks with answer choices, but those of which scores are kept, and returns all.

    `at_once` experts are held together, and their rows share batches. `by` is one of `rank.SCORES`; the other
    two are made of sums, which are kept too. `gated` are the gates among the scorers, and `named` others
    whose names stand for all that they are. Where several hosts do this together, each scores its share, and
    all return everything, which lies in a directory that all see.

    Raises `UserError` for what the table above says.
    """
    names.resolve(by, rank.NORMALIZATIONS, kind="score", where="rank classification")
    bare = [cell._replace(prompted=False) for cell in cells] if by == "calibrated" else []
    examples = {spec.id: task_rows.examples(spec, run.source) for spec in specs}
    ranked = ranked_rows(run, examples)
    gated = gated or {}
    named = (*gated, *named)
    sums = _sums(run, [*cells, *bare], examples, ranked, batch_tokens, at_once, gated, named)
    if by == "sum":
        return sums
    stamps = _stamps(run, examples, named, by)
    made = ScoreStore(run, examples, {cell: stamps(cell) for cell in cells}, by)
    for cell in cells if hosts.is_first() else ():
        where = _where(run, cell, examples[cell.task], by)
        if results_cache.read_header(where, stamps(cell)) is not None:
            continue
        without = sums[cell._replace(prompted=False)].scores if bare else None
        lengths = [
            [len(answer) for answer in ranked[cell.task][row].answers] for row in _numbers(cell, ranked)
        ]
        found = [
            rank.normalize_scores(
                by, np.asarray(own), counts, None if without is None else np.asarray(without[place])
            )
            for place, (own, counts) in enumerate(zip(sums[cell].scores, lengths, strict=True))
        ]
        _write(where, _task_scores(cell, examples[cell.task], found), cell, stamps(cell), by)
    hosts.meet("scores are made of sums")
    return made


def ranked_rows(
    run: Run, examples: Mapping[str, Sequence[PromptedExample]]
) -> dict[str, list[PromptWithChoices]]:
    """Returns the token ids of tasks' rows; raises what is wrong with them."""
    return {
        task: task_rows.rows(found, run.pieces, run.lengths, task=task) for task, found in examples.items()
    }


def missing_cells(
    run: Run, cells: Sequence[Cell], specs: Sequence[TaskSpec], named: Collection[str] = ()
) -> list[Cell]:
    """Returns the cells of which no scores are kept; of files no more than the head is read."""
    examples = {spec.id: task_rows.examples(spec, run.source) for spec in specs}
    stamps = _stamps(run, examples, named)
    return [
        cell
        for cell in cells
        if not results_cache.read_header(_where(run, cell, examples[cell.task], "sum"), stamps(cell))
    ]


def _sums(
    run: Run,
    cells: Sequence[Cell],
    examples: Mapping[str, Sequence[PromptedExample]],
    ranked: Mapping[str, Sequence[PromptWithChoices]],
    batch_tokens: int,
    at_once: int,
    gated: Mapping[str, Gated],
    named: Collection[str],
) -> ScoreStore:
    """Returns the summed log-probabilities of every cell's answers, of which those that lack are scored."""
    stamp_of = _stamps(run, examples, named)
    stamps = {cell: stamp_of(cell) for cell in cells}
    where = {cell: _where(run, cell, examples[cell.task], "sum") for cell in stamps}
    lacking = [cell for cell in stamps if results_cache.read_header(where[cell], stamps[cell]) is None]
    hosts.meet("what lacks scores is known")
    tokens = {task: [_tokens(row) for row in own] for task, own in ranked.items()}
    of_task = {task: sum(own) for task, own in tokens.items()}
    share = hosts.share(
        results_cache.sort_by_scorer(lacking),
        lambda cell: sum(tokens[cell.task][row] for row in cell.rows) or of_task[cell.task],
    )
    total = sum(len(_numbers(cell, ranked)) for cell in share)
    every = [row for task in dict.fromkeys(cell.task for cell in lacking) for row in ranked[task]]
    shapes = engine.choose_shapes_for(run.base.params, every, experts=total / max(1, len(every)))
    done = 0
    with run.stages.stage("score answer choices", total) as advance:
        for stack in load_stacks(run, [cell.scorer for cell in share], at_once, gated):
            for group in results_cache.group_cells(stack, share, ranked):
                own, pairs = results_cache.flatten_cells(group, stack, ranked, run.pieces.eos)
                scores = engine.score_rows(
                    run.base.config,
                    stack.params,
                    own,
                    stack.experts,
                    pairs,
                    batch_tokens=batch_tokens,
                    shapes=shapes,
                    stacked=stack.stacked,
                    progress=lambda rows_done, _, before=done: advance(before + rows_done, ""),
                )
                at = 0
                for cell in group:
                    count = len(_numbers(cell, ranked))
                    made = _task_scores(cell, examples[cell.task], scores[at : at + count])
                    _write(where[cell], made, cell, stamps[cell])
                    at += count
                done += len(scores)
    hosts.meet("scores are kept")
    for cell in lacking:
        if results_cache.read_header(where[cell], stamps[cell]) is None:
            raise UserError(
                f"Scores of {cell.scorer!r} on {cell.task!r} are wanted, which another process was to "
                "write, but they are not there. Let all processes see one directory."
            )
    return ScoreStore(run, examples, stamps)


def method_scores(scores: ScoreStore, task: str, chosen: TaskScorer, method: str) -> TaskScores:
    """Returns a method's scores of a task, put together where every row has a scorer of its own."""
    if isinstance(chosen, str):
        return replace(scores[Cell(task, chosen)], method=method)
    where = {}
    for cell in available_cells(scores, task, chosen):
        own, numbers = scores[cell], cell.rows or range(len(chosen))
        where |= {(row, cell.scorer): (own, place) for place, row in enumerate(numbers)}
    picked = [where[row, scorer] for row, scorer in enumerate(chosen)]
    return TaskScores(
        task=task,
        method=method,
        row_ids=tuple(part.row_ids[place] for part, place in picked),
        scores=tuple(part.scores[place] for part, place in picked),
        predictions=tuple(part.predictions[place] for part, place in picked),
        labels=tuple(part.labels[place] for part, place in picked),
    )


def available_cells(found: Container[Cell], task: str, chosen: TaskScorer) -> list[Cell]:
    """Returns the cells that a choice for a task is put together of: whole ones, where these are there."""
    cells = cells_of_scorer(task, chosen)
    return [cell if cell in found else Cell(task, cell.scorer) for cell in cells]


def cells_of_scorer(task: str, chosen: TaskScorer) -> list[Cell]:
    """Returns the cells that a method's choice for a task consists of."""
    if isinstance(chosen, str):
        return [Cell(task, chosen)]
    by_scorer: dict[str, list[int]] = {}
    for row, scorer in enumerate(chosen):
        by_scorer.setdefault(scorer, []).append(row)
    return [Cell(task, scorer, tuple(own)) for scorer, own in by_scorer.items()]


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


def _task_scores(cell: Cell, examples: Sequence[PromptedExample], scores: Sequence[np.ndarray]) -> TaskScores:
    chosen = [examples[row] for row in cell.rows] if cell.rows else examples
    for example, own in zip(chosen, scores, strict=True):
        if not np.isfinite(own).all():
            raise UserError(
                f"Scores are wanted, but with {cell.scorer!r} those of row {example.row_id!r} are no "
                "numbers: its weights hold NaN or infinity. Train it again, or `elm experts remove` it."
            )
    return TaskScores(
        task=cell.task,
        method=cell.scorer,
        row_ids=tuple(example.row_id for example in chosen),
        scores=tuple(tuple(float(each) for each in row) for row in scores),
        predictions=tuple(rank.predict(row) for row in scores),
        labels=tuple(-1 if example.label is None else example.label for example in chosen),
    )


def _numbers(cell: Cell, ranked: Mapping[str, Sequence[PromptWithChoices]]) -> Sequence[int]:
    return cell.rows or range(len(ranked[cell.task]))


def _tokens(row: PromptWithChoices) -> int:
    """Returns how many tokens a row has, of prompt and answers: what hosts share evenly."""
    return len(row.prompt) + sum(map(len, row.answers))


def _stamps(
    run: Run, examples: Mapping[str, Sequence[PromptedExample]], named: Collection[str], by: str = "sum"
) -> results_cache.CacheKeys:
    """Returns the stamp of a cell's scores: of base, rows, lengths, way of scoring and scorer."""
    told = {}
    for task, found in examples.items():
        own = [[example.row_id, example.input, list(example.choices), example.label] for example in found]
        told[task] = storage.fingerprint(
            # What a head holds is told too, so that a file with another one is written anew.
            {**results_cache.reading_settings(run), "rows": own, "score": by, "head": 2}
        )
    of_scorer = results_cache.scorer_cache_keys(run, named)
    return lambda cell: of_scorer(cell.scorer, told[cell.task])


def _kind(cell: Cell, by: str) -> str:
    return "without_prompt" if not cell.prompted else "" if by == "sum" else by


def _where(run: Run, cell: Cell, examples: Sequence[PromptedExample], by: str) -> epath.Path:
    ids = [example.row_id for example in examples] if cell.rows else ()
    return results_cache.cell_file(run.workspace.scores, cell, ids, _kind(cell, by), run.source.limit)


def _write(where: epath.Path, scores: TaskScores, cell: Cell, stamp: str, by: str = "sum") -> None:
    head = {"task": cell.task, "expert": cell.scorer, "stamp": stamp, "score": _kind(cell, by) or "sum"}
    counted = metrics.count_correct(scores)
    head |= {"rows": counted.n, "right": counted.right}
    lines = [
        dict(zip(COLUMNS, values, strict=True))
        for values in zip(scores.row_ids, scores.labels, scores.predictions, scores.scores, strict=True)
    ]
    results_cache.write_cell(where, head, lines)


def _gone(cell: Cell) -> str:
    return (
        f"Scores of {cell.scorer!r} on {cell.task!r} are wanted, but their file is gone, or another one now. "
        "Let nothing else write to this directory, and evaluate once more."
    )
