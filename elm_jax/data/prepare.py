"""`elm prepare`: renders and tokenises tasks once, into one file per task and split.

A file that is current is left alone. If anything that went into it has changed (its data, its template, the
tokenizer, the options), it is stale and made again. Files appear whole, so work that was stopped goes on with
the tasks that are left.
"""

import multiprocessing
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from etils import epath

from elm_jax import names, storage
from elm_jax.data import identity, seqio_rows, task_rows, task_selection, tokenized_rows
from elm_jax.errors import UserError
from elm_jax.prompting.templates import Template
from elm_jax.records import RowCounts, TaskSpec
from elm_jax.tasks import data_source, datasets, raw_rows, rendering, task_templates
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.tasks.datasets import Dataset
from elm_jax.tasks.raw_rows import SharedRows
from elm_jax.tasks.row_counts import describe_counts
from elm_jax.telemetry.progress import Stages
from elm_jax.tokenizers.sentencepiece import Tokenizer


@dataclass(frozen=True)
class PrepareJob:
    """One task and split to prepare: all that another process needs.

    Attributes:
        spec: The task.
        source: Where its rows and template come from.
        lengths: Tokens of inputs and of targets that are kept.
        tokenizer: The tokenizer.
        file: The file to write.
        user_datasets: Definitions that a new process does not have.
    """

    spec: TaskSpec
    source: Source
    lengths: Lengths
    tokenizer: Tokenizer
    file: epath.Path
    user_datasets: Mapping[str, Dataset]


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
    """

    task: str
    split: str
    file: str
    rows: int
    made: bool
    counts: RowCounts | None = None


def prepare_tasks(
    *,
    tasks: Sequence[str],
    tokenizer: Tokenizer,
    source: Source,
    lengths: Lengths | None = None,
    processes: int = 1,
    stages: Stages | None = None,
) -> list[PreparedTask]:
    """Prepares tasks below `source.prepared`, where training and evaluation with the same settings read them.

    A task that cannot be prepared leaves no file and does not stop the others.

    Args:
        tasks: Ids of tasks, datasets or groups.
        tokenizer: The base's tokenizer.
        source: Where rows and templates come from, and the directory to prepare them in.
        lengths: Tokens of inputs and of targets that are kept.
        processes: How many tasks are prepared at once. More than one are new processes (spawned), so a script
            has to keep its own work under `if __name__ == "__main__"`.
        stages: Shows progress.

    Raises:
        UserError: If any task cannot be prepared, after all others are.
    """
    if source.prepared is None:
        raise UserError(
            "Expected a directory to prepare rows in, got none. Fix: set `prepared` of the source."
        )
    lengths, stages = lengths or Lengths(), stages or Stages()
    results: dict[str, PreparedTask] = {}
    problems: dict[str, str] = {}
    jobs = {}
    specs = task_selection.select_tasks(tasks, source)
    with stages.stage("look for what is prepared", len(specs)) as advance:
        for done, spec in enumerate(specs, start=1):
            file = task_selection.prepared_file(source.prepared, spec, data_source.get_split(spec, source))
            own = {name: made for name, made in datasets.user_datasets().items() if name == spec.dataset}
            job = PrepareJob(spec, source, lengths, tokenizer, file, own)
            current = _load_if_current(job) if file.exists() else None
            if current is None:
                jobs[spec.id] = job
            else:
                results[spec.id] = current
            advance(done, "")
    title = f"prepare {len(jobs)} tasks" if jobs else "all tasks are prepared already"
    with stages.stage(title, len(jobs)) as advance:
        for done, (task, result) in enumerate(_run_all(list(jobs.values()), processes), start=1):
            if isinstance(result, PreparedTask):
                results[task] = result
            else:
                problems[task] = result
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

    Raises:
        UserError: If a task does not exist or its rows cannot be used.
    """
    if source.prepared is None or not tasks:
        raise UserError(
            "Expected a directory to prepare rows in and names of SeqIO's tasks, got none. Fix: give both."
        )
    lengths, stages = lengths or Lengths(), stages or Stages()
    results = []
    with stages.stage(f"prepare {len(tasks)} tasks through SeqIO", len(tasks)) as advance:
        for done, name in enumerate(tasks, start=1):
            split = source.splits.get(name, "train")
            spec = task_selection.make_seqio_spec(name, split)
            file = task_selection.prepared_file(source.prepared, spec, split)
            options: dict[str, Any] = {"limit": source.limit, "seed": source.seed}
            rendering_key = seqio_rows.make_rendering_key(module, name, split, **options)
            cache_key = tokenized_rows.make_cache_key(rendering_key, tokenizer, lengths)
            stale = not (file.exists() and tokenized_rows.is_current(file, cache_key))
            if stale:
                rows = seqio_rows.load_rows(module, name, split, tokenizer, lengths, **options)
                tokenized_rows.save(file, rows, cache_key)
            count = len(tokenized_rows.load(file).labels)
            results.append(PreparedTask(spec.id, split, str(file), count, stale))
            advance(done, name)
    return results


def describe_result(result: PreparedTask) -> str:
    """Returns what was done with a task, in words."""
    parts = ["made" if result.made else "current already"]
    if result.counts is not None:
        parts.append(describe_counts(result.counts))
    return ", ".join(parts)


def run_jobs(jobs: Sequence[PrepareJob]) -> list[tuple[str, PreparedTask | str]]:
    """Prepares tasks that read the same rows, in a new process; a string is what is wrong with a task."""
    for job in jobs:
        datasets.add_user_datasets(job.user_datasets)
    return list(_run_each(jobs))


def _run_each(jobs: Sequence[PrepareJob]) -> Iterator[tuple[str, PreparedTask | str]]:
    rows = None
    for job in jobs:
        try:
            template = task_templates.find_template(job.spec, job.source.templates_dir)
            if rows is None:
                rows = SharedRows(raw_rows.iterate_rows(job.spec, job.source))
            yield job.spec.id, _prepare_task(job, rows, template)
        except UserError as error:
            yield job.spec.id, str(error)


def _prepare_task(job: PrepareJob, rows: Iterable[Mapping[str, Any]], template: Template) -> PreparedTask:
    """Renders and tokenises one task into its file."""
    split = data_source.get_split(job.spec, job.source)
    rendered = rendering.render_rows(job.spec, rows, template, job.source)
    made = task_rows.tokenize_task(rendered, job.tokenizer, job.lengths)
    # The key is computed last: what the first reading fetches (TFDS's files) is a part of it.
    tokenized_rows.save(job.file, made, _make_cache_key(job))
    return PreparedTask(job.spec.id, split, str(job.file), len(made.labels), True, rendered.counts)


def _make_cache_key(job: PrepareJob) -> str:
    rendering_key = task_rows.rendering_key(job.spec, job.source)
    return tokenized_rows.make_cache_key(rendering_key, job.tokenizer, job.lengths)


def _load_if_current(job: PrepareJob) -> PreparedTask | None:
    """Returns what is prepared already; None if it is stale, or if that cannot be found out."""
    try:
        if not tokenized_rows.is_current(job.file, _make_cache_key(job)):
            return None
    except UserError:  # no template or no source: preparing the task raises it again
        return None
    stored = tokenized_rows.load(job.file)
    split = data_source.get_split(job.spec, job.source)
    if stored.counts is not None:
        rendering.require_usable(job.spec, stored.counts, (), job.source)
    return PreparedTask(job.spec.id, split, str(job.file), len(stored.labels), False, stored.counts)


def _run_all(jobs: Sequence[PrepareJob], processes: int) -> Iterator[tuple[str, PreparedTask | str]]:
    """Yields every task with its result, or with what is wrong, in the order in which they end."""
    if min(processes, len(jobs)) <= 1:
        for group in _group_by_rows(jobs, len(jobs)):
            yield from _run_each(group)
        return
    picklable = [_can_be_pickled(job) for job in jobs]
    yield from _run_each([job for job, can in zip(jobs, picklable, strict=True) if not can])
    sent = [job for job, can in zip(jobs, picklable, strict=True) if can]
    groups = _group_by_rows(sent, -(-len(jobs) // processes))
    if not groups:
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(groups)), mp_context=context) as pool:
        try:
            for future in as_completed([pool.submit(run_jobs, group) for group in groups]):
                yield from future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "Expected the processes that prepare tasks to end by themselves, got one that was killed, "
                "perhaps because memory ran out. Fix: run the same command again, with fewer processes; what "
                "is prepared is kept."
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _can_be_pickled(job: PrepareJob) -> bool:
    """Returns whether a job can be sent to another process: one with a nested function cannot."""
    try:
        pickle.dumps(job.user_datasets)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True


def _group_by_rows(jobs: Sequence[PrepareJob], most: int) -> list[list[PrepareJob]]:
    """Groups tasks that read the same rows, at most so many, so that the rows are read once."""
    groups: dict[str, list[PrepareJob]] = {}
    for job in jobs:
        try:
            key = storage.fingerprint(identity.identify_rows(job.spec, job.source))
        except UserError:  # preparing the task raises it again
            key = job.spec.id
        groups.setdefault(key, []).append(job)
    return [group[at : at + most] for group in groups.values() for at in range(0, len(group), max(1, most))]


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
