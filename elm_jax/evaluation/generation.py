"""Generated answers: what every wanted expert writes to every wanted task, and how good that is.

Answers are kept one file a (task, expert), as scores are: a run that was killed writes no answer again that
is in a whole file, and another measure judges kept answers without the network. The first line of a file
holds what the task got, the others one row each.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from etils import epath

from elm_jax import storage
from elm_jax.axes import PAD
from elm_jax.data import task_rows
from elm_jax.errors import UserError
from elm_jax.evaluation import results_cache
from elm_jax.evaluation.expert_stacks import AT_ONCE, stacks
from elm_jax.evaluation.results_cache import Cell
from elm_jax.evaluation.selections import Chosen
from elm_jax.launch import hosts
from elm_jax.records import PromptedExample, TaskSpec
from elm_jax.reporting import written
from elm_jax.reporting.written import Judgement
from elm_jax.routing.gates import Gated
from elm_jax.scoring import generator as engine
from elm_jax.scoring.buckets import Row
from elm_jax.scoring.decoding import NO_NUMBERS
from elm_jax.scoring.scorer import BATCH_TOKENS
from elm_jax.session.workspace import Run
from elm_jax.tasks import original
from elm_jax.tasks.original import SWAPPED_BLEU

COLUMNS: Sequence[str] = ("row", "target", "prediction", "value")


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
    cells: Sequence[Cell],
    specs: Sequence[TaskSpec],
    *,
    metric: str | None = None,
    swapped_bleu: bool | None = None,
    batch_tokens: int = BATCH_TOKENS,
    at_once: int = AT_ONCE,
    gated: Mapping[str, Gated] | None = None,
    named: Collection[str] = (),
) -> dict[Cell, Answers]:
    """Lets the scorers of cells answer their tasks greedily; what was kept of their answers is read.

    Answers have at most as many tokens as the run's lengths say. `metric` is one of `written.MEASURES` or a
    hook's name, without it each task's own; any task can be answered, one with choices by exact match.
    `swapped_bleu` is the original's BLEU, and without it as the run's source is faithful in it.
    `at_once` experts are held together, and their rows share batches. `gated` are the gates among the
    scorers, and `named` others whose names stand for all that they are. Where several hosts do this together,
    each writes its share, and all return everything.

    Raises `UserError` for a measure that is not there (before anything is generated), a task without rows,
    and an expert that gives no numbers.
    """
    swapped = _swaps(run) if swapped_bleu is None else swapped_bleu
    metrics = {spec.id: metric or spec.metric for spec in specs}
    for name in set(metrics.values()):
        written.require(name)
    tasks = {spec.id: task_rows.examples(spec, run.source) for spec in specs}
    stamps = _stamps(run, tasks, (*(gated or {}), *named))
    told: dict[Cell, Answers] = {}
    lacking: list[Cell] = []

    def keep(cell: Cell, texts: Sequence[str]) -> None:
        made = _judged(cell, tasks[cell.task], texts, metrics[cell.task], swapped_bleu=swapped)
        _write(run, made, cell, tasks[cell.task], stamps(cell), _judging(metrics[cell.task], swapped))
        told[cell] = made

    for cell in cells:
        kept = _read(run, cell, tasks[cell.task], stamps(cell))
        if kept is None:
            lacking.append(cell)
        elif kept[0] == _judging(metrics[cell.task], swapped):
            told[cell] = kept[1]
        else:
            keep(cell, kept[1].predictions)
    hosts.meet("what lacks answers is known")
    prompts = {
        task: [Row(prompt, ()) for prompt in task_rows.prepare(tasks[task], run.pieces, run.lengths).inputs]
        for task in dict.fromkeys(cell.task for cell in lacking)
    }
    share = hosts.share(
        results_cache.by_scorer(lacking), lambda cell: sum(len(row.prompt) for row in prompts[cell.task])
    )
    total = sum(len(cell.rows) or len(prompts[cell.task]) for cell in share)
    every = [row.prompt for of_task in prompts.values() for row in of_task]
    lengths = engine.lengths_for(run.base.params, every, experts=total / max(1, len(every)))
    done = 0
    with run.stages.stage("write answers", total) as advance:
        for stack in stacks(run, [cell.scorer for cell in share], at_once, gated):
            for group in results_cache.groups(stack, share, prompts):
                own, pairs = results_cache.laid(group, stack, prompts, run.pieces.eos)
                tokens = engine.generate_rows(
                    run.base.config,
                    stack.params,
                    [row.prompt for row in own],
                    run.lengths.answer,
                    run.pieces.eos,
                    stack.experts,
                    pairs,
                    batch_tokens=batch_tokens,
                    lengths=lengths,
                    stacked=stack.stacked,
                    progress=lambda rows_done, _, before=done: advance(before + rows_done, ""),
                )
                done += len(tokens)
                at = 0
                for cell in group:
                    count = len(cell.rows) or len(prompts[cell.task])
                    keep(cell, _texts(run, _chosen(cell, tasks[cell.task]), cell, tokens[at : at + count]))
                    at += count
    hosts.meet("answers are kept")
    for cell in lacking:
        if cell not in told:
            kept = _read(run, cell, tasks[cell.task], stamps(cell))
            if kept is None:
                raise UserError(
                    f"Answers of {cell.scorer!r} to {cell.task!r} are wanted, which another process was to "
                    "write, but they are not there. Let all processes see one directory."
                )
            told[cell] = kept[1]
    return told


def missing(
    run: Run, cells: Sequence[Cell], specs: Sequence[TaskSpec], named: Collection[str] = ()
) -> list[Cell]:
    """Returns the cells of which no answers are kept; of files no more than the head is read."""
    tasks = {spec.id: task_rows.examples(spec, run.source) for spec in specs}
    stamps = _stamps(run, tasks, named)
    return [
        cell for cell in cells if not results_cache.head_of(_where(run, cell, tasks[cell.task]), stamps(cell))
    ]


def together(
    run: Run,
    parts: Mapping[Cell, Answers],
    spec: TaskSpec,
    method: str,
    chosen: Chosen,
    left_out: Sequence[str] = (),
) -> Answers:
    """Returns a method's answers to a task, put together where every row has a scorer of its own.

    They are judged by the task's own measure. Rows of the ids in `left_out` do not count.
    """
    place = {
        (row, cell.scorer): (own, at) for cell, own in parts.items() for at, row in enumerate(own.row_ids)
    }
    examples, texts = [], []
    for number, example in enumerate(task_rows.examples(spec, run.source)):
        if example.row_id not in left_out:
            own, at = place[example.row_id, chosen if isinstance(chosen, str) else chosen[number]]
            examples.append(example)
            texts.append(own.predictions[at])
    return _judged(Cell(spec.id, method), examples, texts, spec.metric, swapped_bleu=_swaps(run))


def _chosen(cell: Cell, examples: Sequence[PromptedExample]) -> Sequence[PromptedExample]:
    return [examples[row] for row in cell.rows] if cell.rows else examples


def _texts(
    run: Run, examples: Sequence[PromptedExample], cell: Cell, tokens: Sequence[np.ndarray]
) -> list[str]:
    for example, answer in zip(examples, tokens, strict=True):
        if NO_NUMBERS in answer:
            raise UserError(
                f"Answers are wanted, but {cell.scorer!r} gives no numbers for row {example.row_id!r}: its "
                "weights hold NaN or infinity. Train it again, or `elm experts remove` it."
            )
    return [run.pieces.decode(answer[answer != PAD].tolist()) for answer in tokens]


def _judged(
    cell: Cell, examples: Sequence[PromptedExample], texts: Sequence[str], metric: str, *, swapped_bleu: bool
) -> Answers:
    chosen = _chosen(cell, examples)
    targets = tuple(example.target for example in chosen)
    inputs = [example.input for example in chosen]
    found = written.judge(metric, targets, texts, inputs, swapped_bleu=swapped_bleu)
    ids = tuple(example.row_id for example in chosen)
    return Answers(cell.task, cell.scorer, ids, targets, tuple(texts), found)


def _swaps(run: Run) -> bool:
    """Says whether a run asks for the original's BLEU."""
    return SWAPPED_BLEU in original.parse_switches(run.source.faithful)


def _judging(metric: str, swapped_bleu: bool) -> str:
    """Stands for how answers are judged; what a hook computes is its owner's to name anew."""
    return f"{metric}, swapped" if swapped_bleu and metric == "bleu" else metric


def _stamps(
    run: Run, tasks: Mapping[str, Sequence[PromptedExample]], named: Collection[str]
) -> results_cache.Stamp:
    """Returns the stamp of a cell's answers: of base, rows, their targets, lengths and scorer."""
    told = {}
    for task, examples in tasks.items():
        own = [[example.row_id, example.input, example.target] for example in examples]
        told[task] = storage.fingerprint({**results_cache.read_as(run), "rows": own, "way": "greedy"})
    of_scorer = results_cache.stamps(run, named)
    return lambda cell: of_scorer(cell.scorer, told[cell.task])


def _where(run: Run, cell: Cell, examples: Sequence[PromptedExample]) -> epath.Path:
    ids = [example.row_id for example in examples] if cell.rows else ()
    return results_cache.file(run.workspace.generated, cell, ids, limit=run.source.limit)


def _write(
    run: Run,
    answers: Answers,
    cell: Cell,
    examples: Sequence[PromptedExample],
    stamp: str,
    judging: str,
) -> None:
    judgement = asdict(answers.judgement)
    values = judgement.pop("rows") or [None] * len(answers.row_ids)
    head = {"task": answers.task, "expert": answers.expert, "stamp": stamp, "judging": judging, **judgement}
    lines = [
        dict(zip(COLUMNS, columns, strict=True))
        for columns in zip(answers.row_ids, answers.targets, answers.predictions, values, strict=True)
    ]
    results_cache.write(_where(run, cell, examples), head, lines)


def _read(
    run: Run, cell: Cell, examples: Sequence[PromptedExample], stamp: str
) -> tuple[str, Answers] | None:
    """Returns how answers were judged and the answers, if there are any and to these very rows."""
    kept = results_cache.read(_where(run, cell, examples), stamp, COLUMNS)
    if kept is None:
        return None
    head, lines = kept
    row_ids, targets, predictions, values = (tuple(row[name] for row in lines) for name in COLUMNS)
    of_rows = () if None in values else values
    judgement = Judgement(head["measure"], head["value"], head["low"], head["high"], of_rows)
    return head["judging"], Answers(cell.task, cell.scorer, row_ids, targets, predictions, judgement)
