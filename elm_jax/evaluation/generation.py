"""Generation: the answers of every wanted expert to every wanted task in free text, and how good they are.

Answers are kept one file a cell (`evaluation.results_cache`), as scores are: a run that was killed writes no
answer again that is in a whole file, and another metric is computed of kept answers without the network. The
header of a file holds the metric's value of the task.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from etils import epath

from elm_jax import schema, storage
from elm_jax.axes import PAD
from elm_jax.errors import UserError
from elm_jax.evaluation import results_cache
from elm_jax.evaluation.config import ScoringOptions
from elm_jax.evaluation.expert_stacks import load_stacks
from elm_jax.evaluation.results_cache import Cell, RowScorers
from elm_jax.evaluation.tasks import EvaluationTask
from elm_jax.experts import result_files
from elm_jax.experts.result_files import AnswersHeader
from elm_jax.launch import hosts
from elm_jax.records import PromptedExample
from elm_jax.reporting import text_metrics
from elm_jax.reporting.text_metrics import MetricValue
from elm_jax.scoring import generator as engine
from elm_jax.scoring.buckets import PromptWithChoices
from elm_jax.scoring.decoding import NAN_TOKEN
from elm_jax.session.workspace import Run
from elm_jax.tasks import original
from elm_jax.tasks.original import SWAPPED_BLEU_SWITCH

Tasks = Mapping[str, EvaluationTask]


@dataclass(frozen=True)
class _AnswersRow(schema.Form):
    """A line of a file of answers."""

    row: str
    target: str
    prediction: str
    value: float | None


@dataclass(frozen=True, repr=False)
class GeneratedAnswers:
    """What one scorer wrote to one task, row by row.

    Attributes:
        task: its id.
        scorer: an expert's id, a gate's name or `BASE`.
        row_ids: of the rows that were answered.
        targets: the right answers.
        predictions: what was written.
        metric: its value of these answers.
    """

    task: str
    scorer: str
    row_ids: tuple[str, ...]
    targets: tuple[str, ...]
    predictions: tuple[str, ...]
    metric: MetricValue

    def __repr__(self) -> str:
        value = f"{self.metric.measure} {self.metric.value:.1f}"
        return f"GeneratedAnswers({self.scorer!r} on {self.task!r}, {len(self.row_ids)} rows, {value})"


@dataclass(frozen=True)
class AnswerMetric:
    """The metric of a task's answers.

    Attributes:
        name: one of `text_metrics.METRICS`, or a hook's.
        swapped_bleu: whether predictions and targets change places in BLEU, as in the original.
    """

    name: str
    swapped_bleu: bool = False

    @property
    def label(self) -> str:
        """What files name it by; what a hook computes is its owner's to rename."""
        return f"{self.name}, swapped" if self.swapped_bleu and self.name == "bleu" else self.name


def generate_answers(
    run: Run,
    cells: Sequence[Cell],
    tasks: Tasks,
    options: ScoringOptions | None = None,
    *,
    metric: str | None = None,
    swapped_bleu: bool | None = None,
) -> dict[Cell, GeneratedAnswers]:
    """Lets the scorers of cells answer their tasks greedily; answers that are on disk are read.

    If several hosts call this together, each writes its share, and all return everything.

    Args:
        run: with the base, the libraries and the directory of answers. An answer has at most as many tokens
            as its lengths say.
        cells: tasks with their scorers; one with choices can be answered too.
        tasks: task id -> its rows.
        options: how they are answered.
        metric: one of `text_metrics.METRICS` or a hook's name; default: each task's own.
        swapped_bleu: see `AnswerMetric`; default: if the run's source is faithful in it.

    Returns:
        Cell -> its answers.

    Raises:
        UserError: a metric that does not exist (before anything is generated), or an expert whose logits are
            NaN.
    """
    options = options or ScoringOptions()
    swapped = _swaps_bleu(run) if swapped_bleu is None else swapped_bleu
    metrics = {name: AnswerMetric(metric or task.spec.metric, swapped) for name, task in tasks.items()}
    for each in metrics.values():
        text_metrics.require_metric(each.name)
    key_of = _cache_keys(run, tasks, options.content_addressed)
    answers: dict[Cell, GeneratedAnswers] = {}

    def save(cell: Cell, texts: Sequence[str]) -> None:
        task = tasks[cell.task]
        answers[cell] = _evaluate(cell, task.examples_of(cell.rows), texts, metrics[cell.task])
        _write(_file(run, cell, task), answers[cell], key_of(cell), metrics[cell.task].label)

    files = {cell: _file(run, cell, tasks[cell.task]) for cell in cells}
    missing = results_cache.find_missing(run, files, key_of)
    for cell in (cell for cell in cells if cell not in missing):
        found = _read(files[cell], cell, key_of(cell))
        assert found is not None
        if found[0] == metrics[cell.task].label:
            answers[cell] = found[1]
        else:
            save(cell, found[1].predictions)
    hosts.barrier("what lacks answers is known")
    prompts = {
        task: [PromptWithChoices(prompt, ()) for prompt in tasks[task].tokens.inputs]
        for task in dict.fromkeys(cell.task for cell in missing)
    }
    row_counts = {task: len(own) for task, own in prompts.items()}
    share = hosts.shard_by_cost(
        results_cache.sort_by_scorer(missing), lambda cell: sum(len(row.prompt) for row in prompts[cell.task])
    )
    total = sum(results_cache.count_rows(cell, row_counts) for cell in share)
    rows = [row.prompt for own in prompts.values() for row in own]
    lengths = engine.choose_prompt_lengths(
        run.base.params, rows, experts_per_prompt=total / max(1, len(rows))
    )
    done = 0
    with run.stages.stage("write answers", total) as advance:
        scorers = [cell.scorer for cell in share]
        for stack in load_stacks(run, scorers, options.experts_at_once, options.gates):
            for group in results_cache.group_cells(stack, share, row_counts):
                flat, pairs = results_cache.flatten_cells(run, group, stack, prompts)
                tokens = engine.generate_rows(
                    run.base.config,
                    stack.params,
                    [row.prompt for row in flat],
                    engine.AnswerLimit(run.lengths.answer, run.tokenizer.eos),
                    stack.experts,
                    pairs,
                    batch_tokens=options.batch_tokens,
                    lengths=lengths,
                    progress=lambda rows_done, _, before=done: advance(before + rows_done, ""),
                    stacked=stack.stacked,
                )
                done += len(tokens)
                start = 0
                for cell in group:
                    end = start + results_cache.count_rows(cell, row_counts)
                    save(cell, _decode(run, cell, tasks[cell.task], tokens[start:end]))
                    start = end
    hosts.barrier("answers are kept")
    for cell in missing:
        if cell not in answers:
            found = _read(_file(run, cell, tasks[cell.task]), cell, key_of(cell))
            if found is None:
                raise UserError(
                    f"Expected answers of {cell.scorer!r} to {cell.task!r} by another process, got none. "
                    "Fix: let all processes see one directory."
                )
            answers[cell] = found[1]
    return answers


def missing_cells(
    run: Run, cells: Sequence[Cell], tasks: Tasks, content_addressed: Collection[str] = ()
) -> list[Cell]:
    """Returns the cells that have no answers yet, or answers that were changed."""
    files = {cell: _file(run, cell, tasks[cell.task]) for cell in cells}
    return results_cache.find_missing(run, files, _cache_keys(run, tasks, content_addressed), is_quiet=True)


def assemble_answers(
    run: Run,
    parts: Mapping[Cell, GeneratedAnswers],
    task: EvaluationTask,
    scorer: RowScorers,
    left_out: Sequence[str] = (),
) -> GeneratedAnswers:
    """Returns a method's answers to a task, put together of those of its scorers, by the task's own metric.

    Args:
        run: whose source says which BLEU is meant.
        parts: answers of every scorer.
        task: that is answered.
        scorer: one for the task, or one for each of its rows.
        left_out: ids of rows that do not count.
    """
    places = {
        (row, cell.scorer): (own, at) for cell, own in parts.items() for at, row in enumerate(own.row_ids)
    }
    examples, texts = [], []
    for number, example in enumerate(task.examples):
        if example.row_id not in left_out:
            own, at = places[example.row_id, scorer if isinstance(scorer, str) else scorer[number]]
            examples.append(example)
            texts.append(own.predictions[at])
    name = scorer if isinstance(scorer, str) else "several"
    return _evaluate(Cell(task.id, name), examples, texts, AnswerMetric(task.spec.metric, _swaps_bleu(run)))


def _decode(run: Run, cell: Cell, task: EvaluationTask, tokens: Sequence[np.ndarray]) -> list[str]:
    """Returns answers as text; raises a UserError if the logits of one were NaN."""
    for row_id, answer in zip(task.row_ids(cell.rows), tokens, strict=True):
        if NAN_TOKEN in answer:
            raise UserError(
                f"Expected finite logits of {cell.scorer!r}, got NaN for row {row_id!r}. Fix: train the "
                "expert again, or `elm experts remove` it."
            )
    return [run.tokenizer.decode(answer[answer != PAD].tolist()) for answer in tokens]


def _evaluate(
    cell: Cell, examples: Sequence[PromptedExample], texts: Sequence[str], metric: AnswerMetric
) -> GeneratedAnswers:
    targets = tuple(example.target for example in examples)
    inputs = [example.input for example in examples]
    value = text_metrics.compute_metric(
        metric.name,
        targets,
        texts,
        inputs,
        accepted=[example.answers for example in examples],
        swapped_bleu=metric.swapped_bleu,
    )
    ids = tuple(example.row_id for example in examples)
    return GeneratedAnswers(cell.task, cell.scorer, ids, targets, tuple(texts), value)


def _swaps_bleu(run: Run) -> bool:
    """Returns whether a run asks for the original's BLEU."""
    return SWAPPED_BLEU_SWITCH in original.parse_switches(run.source.faithful)


def _cache_keys(run: Run, tasks: Tasks, content_addressed: Collection[str]) -> results_cache.CacheKeys:
    """Returns the cache key of a cell's answers: of base, rows, their targets, lengths and scorer."""
    settings = results_cache.reading_settings(run)
    task_keys = {
        name: storage.fingerprint(
            {
                **settings,
                "way": "greedy",
                "rows": task.row_ids(),
                **{column: task.identity.digests.columns[column] for column in ("input", "target")},
            }
        )
        for name, task in tasks.items()
    }
    scorer_key = results_cache.scorer_cache_keys(run, content_addressed)
    return lambda cell: scorer_key(cell.scorer, task_keys[cell.task])


def _file(run: Run, cell: Cell, task: EvaluationTask) -> epath.Path:
    row_ids = task.row_ids(cell.rows) if cell.rows else ()
    return results_cache.cell_file(run.workspace.generated, cell, row_ids, limit=run.source.limit)


def _write(where: epath.Path, answers: GeneratedAnswers, cache_key: str, metric: str) -> None:
    value = asdict(answers.metric)
    values = value.pop("rows") or [None] * len(answers.row_ids)
    header = {"task": answers.task, "expert": answers.scorer, "stamp": cache_key, "judging": metric, **value}
    lines = [
        vars(_AnswersRow(*columns))
        for columns in zip(answers.row_ids, answers.targets, answers.predictions, values, strict=True)
    ]
    results_cache.write_cell(where, header, lines)


def _read(where: epath.Path, cell: Cell, cache_key: str) -> tuple[str, GeneratedAnswers] | None:
    """Returns the metric's label and the answers, if there are any and to these very rows."""
    found = results_cache.read_cell(where, cache_key, _AnswersRow)
    if found is None:
        return None
    header, lines = found
    about = result_files.parse_header(header, AnswersHeader, where)
    values = tuple(line.value for line in lines if line.value is not None)
    row_ids, targets, predictions = (
        tuple(getattr(line, name) for line in lines) for name in ("row", "target", "prediction")
    )
    if len(values) not in (0, len(lines)):
        raise result_files.damaged_results(where)
    value = MetricValue(about.measure, about.value, about.low, about.high, values)
    return about.judging, GeneratedAnswers(cell.task, cell.scorer, row_ids, targets, predictions, value)
