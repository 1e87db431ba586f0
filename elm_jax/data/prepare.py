"""`elm prepare`: renders and tokenises tasks once, into one file per task and split.

A file that is current is left alone. If anything that went into it has changed (its data, its template, the
tokenizer, the options), it is stale and made again. Files appear whole, so work that was stopped goes on with
the tasks that are left.
"""

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from elm_jax import locks, names, ranges, storage
from elm_jax.data import missing_rows, prepare_jobs, prepared_files, seqio_rows, task_selection, token_losses
from elm_jax.data.row_ranges import PrepareJob
from elm_jax.data.token_losses import TokenizationReport
from elm_jax.errors import UserError
from elm_jax.records import RowCounts
from elm_jax.tasks import data_source, datasets, rendering
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.tasks.row_counts import describe_counts
from elm_jax.telemetry.progress import Stages
from elm_jax.tokenizers.sentencepiece import Tokenizer


@dataclass(frozen=True)
class PreparedTask:
    """The prepared rows of one task and split.

    Attributes:
        task: Id of the task.
        split: The split.
        file: The file of the rows.
        rows: Number of rows.
        made: Whether the file was made now; False if it was current already.
        counts: Rows that were read, used, left out and cut; None if the file does not say.
        losses: What of the rows the model does not see; None if the file does not say.
    """

    task: str
    split: str
    file: str
    rows: int
    made: bool
    counts: RowCounts | None = None
    losses: TokenizationReport | None = None


def prepare_tasks(
    *,
    tasks: Sequence[str],
    tokenizer: Tokenizer,
    source: Source,
    lengths: Lengths | None = None,
    processes: int = 1,
    stages: Stages | None = None,
    wait: bool = False,
) -> list[PreparedTask]:
    """Prepares tasks below `source.prepared`, where training and evaluation with the same settings read them.

    A task that cannot be prepared leaves no file and does not stop the others.

    Args:
        tasks: Ids of tasks, datasets or groups.
        tokenizer: The base's tokenizer.
        source: Where rows and templates come from, and the directory to prepare them in.
        lengths: Tokens of inputs and of targets that are kept.
        processes: How many processes share the work, even that of one task. More than one are new processes
            (spawned), so a script has to keep its own work under `if __name__ == "__main__"`.
        stages: Shows progress.
        wait: Whether to wait while another process prepares rows in the same directory.

    Raises:
        UserError: If another process does that, or, after all others are prepared, if any task cannot be.
    """
    ranges.require("processes", processes, ranges.whole(1))
    lengths, stages = lengths or Lengths(), stages or Stages()
    results: dict[str, PreparedTask] = {}
    problems: dict[str, str] = {}
    jobs = {}
    with _lock(source, wait=wait) as prepared:
        specs = task_selection.select_tasks(tasks, source)
        missing = missing_rows.find_unreachable(specs, source)
        with stages.stage("look for what is prepared", len(specs)) as advance:
            for done, spec in enumerate(specs, start=1):
                file = task_selection.prepared_file(prepared, spec, data_source.get_split(spec, source))
                own = {name: made for name, made in datasets.user_datasets().items() if name == spec.dataset}
                job = PrepareJob(spec, source, lengths, tokenizer, file, own)
                try:
                    current = _load_if_current(job) if file.exists() else None
                except UserError as error:
                    problems[spec.id] = str(error)
                else:
                    if current is None and spec.id in missing:
                        problems[spec.id] = f"Rows are missing. {missing[spec.id]}"
                    elif current is None:
                        jobs[spec.id] = job
                    else:
                        results[spec.id] = current
                advance(done, "")
        title = f"prepare {len(jobs)} tasks" if jobs else "all tasks are prepared already"
        with stages.stage(title, len(jobs)) as advance:
            for done, (task, result) in enumerate(
                prepare_jobs.run_jobs(list(jobs.values()), processes), start=1
            ):
                if isinstance(result, str):
                    problems[task] = result
                else:
                    results[task] = _describe_file(jobs[task], made=True)
                advance(done, task)
    if problems:
        raise UserError(_format_problems(problems, len(specs)))
    return [results[spec.id] for spec in specs]


def prepare_seqio_tasks(
    module: str,
    *,
    tasks: Sequence[str],
    tokenizer: Tokenizer,
    source: Source,
    lengths: Lengths | None = None,
    stages: Stages | None = None,
    wait: bool = False,
) -> list[PreparedTask]:
    """Prepares tasks that a module registers with SeqIO, through SeqIO.

    Training and evaluation then know the task NAME as `NAME/seqio`.

    Args:
        module: The module, by name or file.
        tasks: SeqIO's names of the tasks.
        tokenizer: The base's tokenizer, which the tasks' has to equal.
        source: The directory to prepare rows in, the limit and the seed; `splits` by the name of a task,
            default train.
        lengths: Tokens of inputs and of targets that are kept.
        stages: Shows progress.
        wait: Whether to wait while another process prepares rows in the same directory.

    Raises:
        UserError: If another process does that, a task does not exist, or its rows cannot be used.
    """
    if not tasks:
        raise UserError("Expected names of SeqIO's tasks, got none. Fix: give some.")
    lengths, stages = lengths or Lengths(), stages or Stages()
    results = []
    title = f"prepare {len(tasks)} tasks through SeqIO"
    with _lock(source, wait=wait) as prepared, stages.stage(title, len(tasks)) as advance:
        for done, name in enumerate(tasks, start=1):
            split = source.splits.get(name, "train")
            spec = task_selection.make_seqio_spec(name, split)
            file = task_selection.prepared_file(prepared, spec, split)
            options: dict[str, Any] = {"limit": source.limit, "seed": source.seed}
            rendering_key = seqio_rows.make_rendering_key(module, name, split, **options)
            cache_key = prepared_files.make_cache_key(rendering_key, tokenizer, lengths)
            stale = not (file.exists() and prepared_files.is_current(file, cache_key))
            if stale:
                rows = seqio_rows.load_rows(module, name, split, tokenizer, lengths, **options)
                prepared_files.save(file, rows, cache_key)
            found = prepared_files.load(file)
            results.append(
                PreparedTask(spec.id, split, str(file), len(found.labels), stale, found.counts, found.losses)
            )
            advance(done, name)
    return results


def describe_result(result: PreparedTask) -> str:
    """Returns what was done with a task, and what of its rows the model does not see, in words."""
    parts = [
        "made" if result.made else "current already",
        describe_counts(result.counts) if result.counts else "",
        token_losses.describe_tokenization_report(result.losses) if result.losses else "",
    ]
    return ", ".join(filter(None, parts))


@contextmanager
def _lock(source: Source, *, wait: bool) -> Generator[storage.PathLike, None, None]:
    """Keeps the directory of prepared rows to this process, and yields it."""
    if source.prepared is None:
        raise UserError(
            "Expected a directory to prepare rows in, got none. Fix: set `prepared` of the source."
        )
    seconds, fix = math.inf if wait else 0.0, "wait until it ends, or give --wait"
    with locks.hold(storage.path(source.prepared) / ".lock", "elm prepare", seconds=seconds, fix=fix):
        storage.remove_unfinished(source.prepared, deep=True)
        yield source.prepared


def _load_if_current(job: PrepareJob) -> PreparedTask | None:
    """Returns what is prepared already; None if it is stale, or if that cannot be found out.

    Raises:
        UserError: If the source refuses rows that were left out of it.
    """
    try:
        if not prepared_files.is_current(job.file, prepare_jobs.make_cache_key(job)):
            return None
    except UserError:  # no template or no source: preparing the task raises it again
        return None
    current = _describe_file(job, made=False)
    if current.counts is not None:
        rendering.require_usable(job.spec, current.counts, (), job.source)
    return current


def _describe_file(job: PrepareJob, *, made: bool) -> PreparedTask:
    rows, split = prepared_files.load(job.file), data_source.get_split(job.spec, job.source)
    count = len(rows.labels)
    return PreparedTask(job.spec.id, split, str(job.file), count, made, rows.counts, rows.losses)


def _format_problems(problems: Mapping[str, str], tasks: int) -> str:
    """Returns what is wrong with tasks: of several, one line per dataset."""
    if tasks == 1:
        return next(iter(problems.values()))
    by_dataset: dict[str, list[str]] = {}
    for task, problem in problems.items():
        by_dataset.setdefault(names.split_id(task)[0], []).append(problem)
    rest = "; the others are" if len(problems) < tasks else ""
    lines = [f"{len(problems)} of {tasks} tasks could not be prepared{rest}."]
    for dataset, found in by_dataset.items():
        lines.append(f"  {dataset}, {len(found)} prompts: {found[0]}")
    return "\n".join(lines)
