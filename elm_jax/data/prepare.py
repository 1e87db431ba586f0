"""`elm prepare`: renders and tokenises tasks once, a file a task and split, so that no run does it again.

A file that is there and current is left alone; whatever went into one and has changed since (its data, its
template, the vocabulary, the options) makes it stale, and it is made anew. Files appear whole, so work that
was stopped goes on with the tasks that are left.
"""

import multiprocessing
import pickle
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from etils import epath

from elm_jax import names, storage
from elm_jax.data import identity, prepared, seqio_rows, task_rows, task_selection
from elm_jax.errors import UserError
from elm_jax.prompting.templates import Template
from elm_jax.records import TaskSpec
from elm_jax.tasks import data_source, datasets, raw_rows, rendering, task_templates
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.tasks.datasets import Dataset
from elm_jax.telemetry.progress import Stages
from elm_jax.tokenizers.sentencepiece import Vocabulary


@dataclass(frozen=True)
class Job:
    """One task and split to prepare: all that a process must be told."""

    spec: TaskSpec
    source: Source
    lengths: Lengths
    pieces: Vocabulary
    file: epath.Path
    own: Mapping[str, Dataset]  # definitions that a fresh process does not have


@dataclass(frozen=True)
class Outcome:
    """What became of one task and split."""

    task: str
    split: str
    file: str
    rows: int
    made: bool  # now, and not before
    skipped: int | None = None  # rows of the dataset that gave no example
    outside: int | None = None  # examples whose target is none of their choices


def prepare(
    *,
    tasks: Sequence[str],
    pieces: Vocabulary,
    source: Source,
    lengths: Lengths | None = None,
    processes: int = 1,
    stages: Stages | None = None,
) -> list[Outcome]:
    """Prepares tasks named by id, dataset or group below `source.prepared`; returns what became of each.

    Training and evaluation whose source, vocabulary and lengths are the same read the rows from there. More
    than one process are fresh ones (spawned), so a script that asks for them keeps its own work under
    `if __name__ == "__main__"`. A task that cannot be prepared leaves nothing behind and does not keep the
    others from it; in the end it is a `UserError`.
    """
    if source.prepared is None:
        raise UserError("A directory to prepare rows in is wanted, but none was named.")
    lengths, stages = lengths or Lengths(), stages or Stages()
    outcomes: dict[str, Outcome] = {}
    problems: dict[str, str] = {}
    jobs = {}
    chosen = task_selection.choose(tasks, source)
    with stages.stage("look for what is prepared", len(chosen)) as advance:
        for done, spec in enumerate(chosen, start=1):
            file = task_selection.prepared_file(source.prepared, spec, data_source.split_of(spec, source))
            own = {name: made for name, made in datasets.added().items() if name == spec.dataset}
            job = Job(spec, source, lengths, pieces, file, own)
            kept = _kept(job) if file.exists() else None
            if kept is None:
                jobs[spec.id] = job
            else:
                outcomes[spec.id] = kept
            advance(done, "")
    title = f"prepare {len(jobs)} tasks" if jobs else "all tasks are prepared already"
    with stages.stage(title, len(jobs)) as advance:
        for done, (task, result) in enumerate(_results(list(jobs.values()), processes), start=1):
            if isinstance(result, Outcome):
                outcomes[task] = result
            else:
                problems[task] = result
            advance(done, task)
    if problems:
        raise UserError(_told(problems, len(chosen)))
    return [outcomes[spec.id] for spec in chosen]


def prepare_seqio(
    module: str,
    *,
    tasks: Sequence[str],
    pieces: Vocabulary,
    source: Source,
    lengths: Lengths | None = None,
    stages: Stages | None = None,
) -> list[Outcome]:
    """Prepares tasks that a module registers with SeqIO by hand, through SeqIO.

    The split is `source.splits`' for the task's name, else train. A task called NAME is then known to
    training and evaluation as `NAME/seqio`.
    """
    if source.prepared is None or not tasks:
        raise UserError("A directory to prepare rows in and the names of SeqIO's tasks are wanted.")
    lengths, stages = lengths or Lengths(), stages or Stages()
    outcomes = []
    with stages.stage(f"prepare {len(tasks)} tasks through SeqIO", len(tasks)) as advance:
        for done, name in enumerate(tasks, start=1):
            split = source.splits.get(name, "train")
            spec = task_selection.seqio_task(name, split)
            file = task_selection.prepared_file(source.prepared, spec, split)
            asked: dict[str, Any] = {"limit": source.limit, "seed": source.seed}
            told = task_rows.tokenized_key(
                seqio_rows.rendering(module, name, split, **asked), pieces, lengths
            )
            stale = not (file.exists() and prepared.is_current(file, told))
            if stale:
                cut: dict[str, Any] = {"max_input": lengths.prompt, "max_target": lengths.answer}
                prepared.save(file, seqio_rows.read(module, name, split, pieces, **cut, **asked), told)
            outcomes.append(Outcome(spec.id, split, str(file), len(prepared.load(file).labels), stale))
            advance(done, name)
    return outcomes


def remark(outcome: Outcome) -> str:
    """Says in words what became of a task."""
    if not outcome.made:
        return "current already"
    left = [
        f"{outcome.skipped:,} rows not applied to" if outcome.skipped else "",
        f"{outcome.outside:,} with a target outside the choices" if outcome.outside else "",
    ]
    return ", ".join(["made", *filter(None, left)])


def work(jobs: Sequence[Job]) -> list[tuple[str, Outcome | str]]:
    """Prepares tasks whose rows are the same; of each, what became of it, or in a sentence what is wrong."""
    for job in jobs:
        datasets.add(job.own)
    return list(_worked(jobs))


def _worked(jobs: Sequence[Job]) -> Iterator[tuple[str, Outcome | str]]:
    rows = None
    for job in jobs:
        try:
            template = task_templates.template_for(job.spec, job.source.templates_dir)
            if rows is None:
                rows = raw_rows.load_rows(job.spec, job.source)
            yield job.spec.id, _one(job, rows, template)
        except UserError as error:
            yield job.spec.id, str(error)


def _one(job: Job, rows: Sequence[Mapping[str, Any]], template: Template) -> Outcome:
    """Renders and tokenises one task into its file."""
    split = data_source.split_of(job.spec, job.source)
    rendered = rendering.render_rows(job.spec, rows, template, job.source)
    made = task_rows.prepare(rendered.examples[: job.source.limit], job.pieces, job.lengths)
    # Only now: what the first reading fetches (TFDS's files) is a part of the fingerprint.
    prepared.save(job.file, made, _fingerprint(job))
    return Outcome(
        job.spec.id, split, str(job.file), len(made.labels), True, rendered.skipped, rendered.outside
    )


def _fingerprint(job: Job) -> str:
    return task_rows.tokenized_key(task_rows.rendering_key(job.spec, job.source), job.pieces, job.lengths)


def _kept(job: Job) -> Outcome | None:
    """Returns what is prepared already; None where it is stale, or where that cannot be told."""
    try:
        if not prepared.is_current(job.file, _fingerprint(job)):
            return None
    except UserError:  # no template or no source: making it will say so
        return None
    rows = len(prepared.load(job.file).labels)
    return Outcome(job.spec.id, data_source.split_of(job.spec, job.source), str(job.file), rows, False)


def _results(jobs: Sequence[Job], processes: int) -> Iterator[tuple[str, Outcome | str]]:
    """Yields every task with its outcome, or with what is wrong, in the order they end."""
    if min(processes, len(jobs)) <= 1:
        for group in _groups(jobs, len(jobs)):
            yield from _worked(group)
        return
    travels = [_travels(job) for job in jobs]
    yield from _worked([job for job, goes in zip(jobs, travels, strict=True) if not goes])
    going = [job for job, goes in zip(jobs, travels, strict=True) if goes]
    groups = _groups(going, -(-len(jobs) // processes))
    if not groups:
        return
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(groups)), mp_context=fresh) as pool:
        try:
            for future in as_completed([pool.submit(work, group) for group in groups]):
                yield from future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "A process that prepared tasks ended abruptly, perhaps for want of memory. What is done is "
                "kept: run the same command again, with fewer processes."
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _travels(job: Job) -> bool:
    """Says whether another process can be told of a job: functions within functions, say, cannot be."""
    try:
        pickle.dumps(job.own)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True


def _groups(jobs: Sequence[Job], most: int) -> list[list[Job]]:
    """Puts together the tasks that read the same rows, at most so many, so that they are read once."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        try:
            told = storage.fingerprint(identity.of_split(job.spec, job.source))
        except UserError:  # which preparing it says again
            told = job.spec.id
        groups.setdefault(told, []).append(job)
    return [group[at : at + most] for group in groups.values() for at in range(0, len(group), max(1, most))]


def _told(problems: Mapping[str, str], tasks: int) -> str:
    """Returns what is wrong in one sentence, or in one a dataset where several tasks are concerned."""
    if tasks == 1:
        return next(iter(problems.values()))
    of_dataset: dict[str, list[str]] = {}
    for task, problem in problems.items():
        of_dataset.setdefault(names.split_id(task)[0], []).append(problem)
    rest = "; the others are" if len(problems) < tasks else ""
    lines = [f"{len(problems)} of {tasks} tasks could not be prepared{rest}."]
    for dataset, found in of_dataset.items():
        lines.append(f"  {dataset}, {len(found)} prompts: {found[0]}")
    return "\n".join(lines)
