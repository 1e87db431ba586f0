"""Generated answers: what every wanted expert writes to every wanted task, and how good that is.

Answers are kept one file a (task, expert), as scores are: a run that was killed writes no answer again that
is in a whole file, and another measure judges kept answers without the network. The first line of a file
holds what the task got, the others one row each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from etils import epath

from elm_jax import names, storage
from elm_jax.axes import PAD
from elm_jax.engine import generate as engine
from elm_jax.engine.evaluate import BATCH_TOKENS
from elm_jax.errors import UserError
from elm_jax.records import PromptedExample, TaskSpec
from elm_jax.reporting import written
from elm_jax.reporting.written import Judgement
from elm_jax.runs import data, scores
from elm_jax.runs.workspace import Run, Workspace
from elm_jax.scoring.buckets import Row
from elm_jax.scoring.generate import NO_NUMBERS


@dataclass(frozen=True)
class Answers:
    """What one expert wrote to one task, row by row, and what a measure makes of it."""

    task: str
    expert: str
    row_ids: tuple[str, ...]
    targets: tuple[str, ...]
    predictions: tuple[str, ...]
    judgement: Judgement


def generate(
    run: Run,
    wanted: Mapping[str, Sequence[str]],
    specs: Sequence[TaskSpec],
    *,
    metric: str | None = None,
    swapped_bleu: bool | None = None,
    batch_tokens: int = BATCH_TOKENS,
    at_once: int = 64,
) -> dict[tuple[str, str], Answers]:
    """Lets the wanted experts answer every task greedily and returns (task, expert) -> answers.

    `wanted` maps a task's id to expert ids, `scores.BASE` for none; answers have at most as many tokens as
    the run's lengths say. `metric` is one of `written.MEASURES` or a hook's name, without it each task's own;
    any task can be answered, one with choices by exact match. `swapped_bleu` is the original's BLEU, and
    without it on where the run's source is faithful in all. `at_once` experts are held together, and their
    rows share batches.

    Raises `UserError` for a measure that is not there (before anything is generated), a task without rows,
    and an expert that gives no numbers.
    """
    if swapped_bleu is None:
        swapped_bleu = "all" in run.source.faithful
    metrics = {spec.id: metric or spec.metric for spec in specs}
    for name in set(metrics.values()):
        written.require(name)
    tasks = {spec.id: data.examples(spec, run.source) for spec in specs}
    stamps = {task: _stamp(run, examples) for task, examples in tasks.items()}
    told: dict[tuple[str, str], Answers] = {}
    missing: dict[str, list[str]] = {}

    def keep(task: str, expert: str, texts: Sequence[str]) -> None:
        examples, stamp = tasks[task], scores.expert_stamp(run.workspace, expert, stamps[task])
        made = _judged(task, expert, examples, texts, metrics[task], swapped_bleu=swapped_bleu)
        _write(run.workspace, made, stamp, _judging(metrics[task], swapped_bleu))
        told[task, expert] = made

    for task, experts in wanted.items():
        for expert in dict.fromkeys(experts):
            stamp = scores.expert_stamp(run.workspace, expert, stamps[task])
            kept = _read(run.workspace, task, expert, stamp)
            if kept is None:
                missing.setdefault(expert, []).append(task)
            elif kept[0] == _judging(metrics[task], swapped_bleu):
                told[task, expert] = kept[1]
            else:
                keep(task, expert, kept[1].predictions)
    rows = {
        task: [Row(prompt, ()) for prompt in data.prepare(tasks[task], run.pieces, run.lengths).inputs]
        for task in {task for of in missing.values() for task in of}
    }
    total = sum(len(rows[task]) for tasks_of in missing.values() for task in tasks_of)
    every = [row.prompt for of_task in rows.values() for row in of_task]
    lengths = engine.lengths_for(run.base.params, every, experts=total / max(1, len(every)))
    done = 0
    with run.stages.stage("write answers", total) as advance:
        for chunk, stack in scores.stacks(run, missing, at_once):
            for group in scores.groups(chunk, missing, rows):
                tokens = engine.generate_rows(
                    run.base.config,
                    run.base.params,
                    [row.prompt for task, _ in group for row in rows[task]],
                    run.lengths.answer,
                    run.pieces.eos,
                    stack,
                    scores.pairs_of([(len(rows[task]), experts) for task, experts in group]),
                    batch_tokens=batch_tokens,
                    lengths=lengths,
                    progress=lambda rows_done, _, before=done: advance(before + rows_done, ""),
                )
                done += len(tokens)
                at = 0
                for task, experts in group:
                    for number in experts:
                        own = tokens[at : at + len(rows[task])]
                        keep(task, chunk[number], _texts(run, tasks[task], chunk[number], own))
                        at += len(own)
    return told


def _texts(
    run: Run, examples: Sequence[PromptedExample], expert: str, tokens: Sequence[np.ndarray]
) -> list[str]:
    for example, answer in zip(examples, tokens, strict=True):
        if NO_NUMBERS in answer:
            raise UserError(
                f"Answers are wanted, but {expert!r} gives no numbers for row {example.row_id!r}: its "
                "weights hold NaN or infinity. Train it again, or `elm experts remove` it."
            )
    return [run.pieces.decode(answer[answer != PAD].tolist()) for answer in tokens]


def _judged(
    task: str,
    expert: str,
    examples: Sequence[PromptedExample],
    predictions: Sequence[str],
    metric: str,
    *,
    swapped_bleu: bool,
) -> Answers:
    targets = tuple(example.target for example in examples)
    inputs = [example.input for example in examples]
    found = written.judge(metric, targets, predictions, inputs, swapped_bleu=swapped_bleu)
    rows = tuple(example.row_id for example in examples)
    return Answers(task, expert, rows, targets, tuple(predictions), found)


def _judging(metric: str, swapped_bleu: bool) -> str:
    """Stands for how answers are judged; what a hook computes is its owner's to name anew."""
    return f"{metric}, swapped" if swapped_bleu and metric == "bleu" else metric


def _stamp(run: Run, examples: Sequence[PromptedExample]) -> str:
    """Stands for what the answers to a task depend on besides the expert, and for their targets."""
    rows = [[example.row_id, example.input, example.target] for example in examples]
    told = {"base": run.base.fingerprint, "rows": rows, "lengths": vars(run.lengths), "way": "greedy"}
    return storage.fingerprint(told)


def _file(workspace: Workspace, task: str, expert: str) -> epath.Path:
    dataset, prompt = names.split_id(task)
    folder = workspace.generated / names.directory_name(dataset) / names.directory_name(prompt)
    return folder / f"{names.directory_name(expert)}.jsonl"


def _write(workspace: Workspace, answers: Answers, stamp: str, judging: str) -> None:
    judgement = asdict(answers.judgement)
    values = judgement.pop("rows") or [None] * len(answers.row_ids)
    head = {"format": storage.FORMAT, "task": answers.task, "expert": answers.expert, "stamp": stamp}
    head |= {"judging": judging, **judgement}
    columns = zip(answers.row_ids, answers.targets, answers.predictions, values, strict=True)
    rows: list[Mapping[str, Any]] = [
        {"row": row, "target": target, "prediction": prediction, "value": value}
        for row, target, prediction, value in columns
    ]
    storage.write_jsonl(_file(workspace, answers.task, answers.expert), [head, *rows])


def _read(workspace: Workspace, task: str, expert: str, stamp: str) -> tuple[str, Answers] | None:
    """Returns how answers were judged and the answers, if there are any and to these very rows."""
    file = _file(workspace, task, expert)
    if not file.exists():
        return None
    head, *rows = storage.read_jsonl(file, what="Answers")
    if head.get("stamp") != stamp or head.get("format") != storage.FORMAT:
        return None
    row_ids, targets, predictions, values = (
        tuple(row[name] for row in rows) for name in ("row", "target", "prediction", "value")
    )
    of_rows = () if None in values else values
    judgement = Judgement(head["measure"], head["value"], head["low"], head["high"], of_rows)
    return head["judging"], Answers(task, expert, row_ids, targets, predictions, judgement)
