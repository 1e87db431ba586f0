"""Scores: every wanted expert on every wanted task, row by row, and what each method makes of that.

Scores are kept one file a (task, expert), so a run that was killed repeats nothing that is whole, and an
expert added tomorrow is scored alone. A method is a choice of expert for each task; several methods that
choose the same expert share its scores.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import jax
import numpy as np
from etils import epath
from jaxtyping import Int

from elm_jax import names, storage
from elm_jax.engine import evaluate as engine
from elm_jax.errors import UserError
from elm_jax.library.store import Library
from elm_jax.merging import agreement
from elm_jax.models.experts import neutral
from elm_jax.records import Params, PromptedExample, TaskScores, TaskSpec
from elm_jax.reporting import metrics
from elm_jax.runs import data
from elm_jax.runs.workspace import Run, Workspace
from elm_jax.scoring import rank
from elm_jax.scoring.buckets import Row

GROUP = 4096  # rows, counted once for each of their experts, that are scored between two writes
BASE = "base"
"""What stands for the base alone where an expert's id is wanted."""


def score(
    run: Run,
    wanted: Mapping[str, Sequence[str]],
    specs: Sequence[TaskSpec],
    *,
    batch_tokens: int = engine.BATCH_TOKENS,
    at_once: int = 64,
    by: str = "sum",
) -> dict[tuple[str, str], TaskScores]:
    """Scores the wanted experts of every task and returns (task, expert) -> scores.

    `wanted` maps a task's id to expert ids, `BASE` for none. `at_once` experts are held together, and their
    rows share batches. `by` is one of `rank.SCORES`. Raises `UserError` for a row that cannot be ranked, and
    for an expert whose scores are no numbers.
    """
    names.resolve(by, rank.SCORES, kind="score", where="rank classification")
    tasks = {spec.id: data.examples(spec, run.source) for spec in specs}
    rows = {task: data.rows(found, run.pieces, run.lengths, task=task) for task, found in tasks.items()}
    if by == "calibrated":
        rows = {
            task: [*own, *(Row([run.pieces.eos], row.answers) for row in own)] for task, own in rows.items()
        }
    stamps = {task: _stamp(run, found, by) for task, found in tasks.items()}
    found: dict[tuple[str, str], TaskScores] = {}
    missing: dict[str, list[str]] = {}
    for task, experts in wanted.items():
        for expert in dict.fromkeys(experts):
            stamp = expert_stamp(run.workspace, expert, stamps[task])
            kept = _read(run.workspace, task, expert, stamp)
            if kept is None:
                missing.setdefault(expert, []).append(task)
            else:
                found[task, expert] = kept
    total = sum(len(rows[task]) for tasks_of in missing.values() for task in tasks_of)
    every = [row for task in {task for of in missing.values() for task in of} for row in rows[task]]
    shapes = engine.shapes_for(run.base.params, every, experts=total / max(1, len(every)))
    done = 0
    with run.stages.stage("score answer choices", total) as advance:
        for chunk, stack in stacks(run, missing, at_once):
            for group in groups(chunk, missing, rows):
                scores = engine.score_rows(
                    run.base.config,
                    run.base.params,
                    [row for task, _ in group for row in rows[task]],
                    stack,
                    pairs_of([(len(rows[task]), experts) for task, experts in group]),
                    batch_tokens=batch_tokens,
                    shapes=shapes,
                    progress=lambda rows_done, _, before=done: advance(before + rows_done, ""),
                )
                done += len(scores)
                at = 0
                for task, experts in group:
                    for number in experts:
                        expert, own = chunk[number], scores[at : at + len(rows[task])]
                        made = _task_scores(task, expert, tasks[task], rows[task], own, by)
                        _write(run.workspace, made, expert_stamp(run.workspace, expert, stamps[task]))
                        found[task, expert] = made
                        at += len(own)
    return found


def groups(
    chunk: Sequence[str], missing: Mapping[str, Sequence[str]], rows: Mapping[str, Sequence[Row]]
) -> Iterator[list[tuple[str, list[int]]]]:
    """Yields tasks with the numbers of the experts that lack them, enough of them together to fill batches.

    Their scores are written when all of a group is done: what a run that is killed has to do again.
    """
    group, pairs = [], 0
    for task in dict.fromkeys(task for expert in chunk for task in missing.get(expert, ())):
        experts = [number for number, expert in enumerate(chunk) if task in missing.get(expert, ())]
        group.append((task, experts))
        pairs += len(rows[task]) * len(experts)
        if pairs >= GROUP:
            yield group
            group, pairs = [], 0
    if group:
        yield group


def pairs_of(tasks: Sequence[tuple[int, Sequence[int]]]) -> Int[np.ndarray, "P 2"]:
    """Returns (row, expert), expert by expert, of tasks that follow each other with so many rows each."""
    pairs, first = [], 0
    for count, experts in tasks:
        numbers = np.arange(first, first + count)
        pairs += [np.stack([numbers, np.full(count, expert)], axis=1) for expert in experts]
        first += count
    return np.concatenate(pairs)


def stacks(
    run: Run, missing: Mapping[str, Sequence[str]], at_once: int
) -> Iterator[tuple[list[str], Params | None]]:
    """Yields experts by the chunk, with their parameters stacked.

    The base takes part as the expert that changes nothing, and every stack is filled up to one size, so that
    another chunk compiles nothing.
    """
    if list(missing) == [BASE]:
        yield [BASE], None
        return
    ids = sorted(missing, key=lambda expert: expert == BASE)
    size = min(at_once, len(ids))
    for at in range(0, len(ids), max(1, size)):
        chunk = ids[at : at + size]
        loaded = [
            home(run.workspace, expert).expert(expert, base=run.base.fingerprint)
            for expert in (chunk if chunk != [BASE] else ids[:1])
            if expert != BASE
        ]
        agreement.require([(expert.spec, agreement.shapes_of(expert.params)) for expert in loaded])
        params = [expert.params for expert in loaded if expert.spec.id in chunk]
        if BASE in chunk:
            params.append(neutral(loaded[0].params, run.base.params))
        params += params[-1:] * (size - len(params))
        yield chunk, jax.tree.map(lambda *leaves: np.stack(leaves), *params)


def home(workspace: Workspace, expert: str) -> Library:
    """Returns the library that an expert lies in: the experts', or that of what was made of several tasks."""
    composites = Library.open(workspace.composites, create=True)
    return composites if expert in composites.ids() else Library.open(workspace.library)


def best_overall(
    scores: Mapping[tuple[str, str], TaskScores], experts: Sequence[str], tasks: Sequence[str]
) -> str:
    """Returns the expert with the best macro mean over the tasks, first of equals: chosen in hindsight."""
    return max(
        experts, key=lambda expert: metrics.macro_mean([scores[task, expert] for task in tasks]).accuracy
    )


def best_each(
    scores: Mapping[tuple[str, str], TaskScores], experts: Sequence[str], tasks: Sequence[str]
) -> dict[str, str]:
    """Returns each task's best expert, the first of equals: the oracle."""
    return {
        task: max(experts, key=lambda expert, task=task: metrics.accuracy(scores[task, expert]).accuracy)
        for task in tasks
    }


def by_method(
    scores: Mapping[tuple[str, str], TaskScores], methods: Mapping[str, Mapping[str, str]]
) -> list[TaskScores]:
    """Returns the scores under the names of methods, each a mapping from task to the expert it chose."""
    return [
        replace(scores[task, expert], method=method)
        for method, chosen in methods.items()
        for task, expert in chosen.items()
    ]


def _task_scores(
    task: str,
    expert: str,
    examples: Sequence[PromptedExample],
    rows: Sequence[Row],
    sums: Sequence[np.ndarray],
    by: str,
) -> TaskScores:
    """Makes scores of sums; where they are calibrated, the second half of the rows have no prompt."""
    scores = []
    for number, example in enumerate(examples):
        without = sums[number + len(examples)] if by == "calibrated" else None
        own = rank.scored(by, sums[number], [len(answer) for answer in rows[number].answers], without)
        if not np.isfinite(own).all():
            raise UserError(
                f"Scores are wanted, but with {expert!r} those of row {example.row_id!r} are no numbers: its "
                "weights hold NaN or infinity. Train it again, or `elm experts remove` it."
            )
        scores.append(own)
    return TaskScores(
        task=task,
        method=expert,
        row_ids=tuple(example.row_id for example in examples),
        scores=tuple(tuple(float(score) for score in row) for row in scores),
        predictions=tuple(rank.predict(row) for row in scores),
        labels=tuple(-1 if example.label is None else example.label for example in examples),
    )


def _stamp(run: Run, examples: Sequence[PromptedExample], by: str) -> str:
    """Stands for what the scores of a task depend on besides the expert."""
    rows = [[example.row_id, example.input, list(example.choices), example.label] for example in examples]
    told = {"base": run.base.fingerprint, "rows": rows, "lengths": vars(run.lengths), "score": by}
    return storage.fingerprint(told)


def expert_stamp(workspace: Workspace, expert: str, stamp: str) -> str:
    """Stands for what an expert's work on a task depends on, of which `stamp` is all but the expert."""
    if expert == BASE:
        return storage.fingerprint([stamp, BASE])
    spec = home(workspace, expert).spec(expert)
    return storage.fingerprint([stamp, spec.id, spec.base, spec.steps, dict(spec.recipe)])


def _file(workspace: Workspace, task: str, expert: str) -> epath.Path:
    dataset, prompt = names.split_id(task)
    folder = workspace.scores / names.directory_name(dataset) / names.directory_name(prompt)
    return folder / f"{names.directory_name(expert)}.jsonl"


def _write(workspace: Workspace, scores: TaskScores, stamp: str) -> None:
    head = {"format": storage.FORMAT, "task": scores.task, "expert": scores.method, "stamp": stamp}
    columns = zip(scores.row_ids, scores.scores, scores.predictions, scores.labels, strict=True)
    rows = [
        {"row": row, "scores": values, "prediction": prediction, "label": label}
        for row, values, prediction, label in columns
    ]
    storage.write_jsonl(_file(workspace, scores.task, scores.method), [head, *rows])


def _read(workspace: Workspace, task: str, expert: str, stamp: str) -> TaskScores | None:
    """Returns the scores kept for an expert on a task, if there are any and of these very rows."""
    file = _file(workspace, task, expert)
    if not file.exists():
        return None
    head, *rows = storage.read_jsonl(file, what="Scores")
    if head.get("stamp") != stamp or head.get("format") != storage.FORMAT:
        return None
    return TaskScores(
        task=task,
        method=expert,
        row_ids=tuple(row["row"] for row in rows),
        scores=tuple(tuple(row["scores"]) for row in rows),
        predictions=tuple(row["prediction"] for row in rows),
        labels=tuple(row["label"] for row in rows),
    )
