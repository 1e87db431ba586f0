"""Prepare jobs: the work of `elm prepare`, in this process or shared by several.

Tasks whose prompts share rows are a group. A group's rows are prepared range by range, and processes share
even a single task; what a file holds does not depend on how many there are.
"""

import pickle
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool

from etils import epath

from elm_jax import storage
from elm_jax.data import identity, prepared_files, prepared_parts, row_ranges, task_rows, worker_pool
from elm_jax.data.row_ranges import PreparedRange, PrepareJob, RangePart
from elm_jax.errors import UserError
from elm_jax.prompting.render import require_columns
from elm_jax.records import RowCounts
from elm_jax.tasks import rendering
from elm_jax.tasks.row_counts import add_counts

RANGES_PER_PROCESS = 2
"""Ranges that are given out for each process."""

JobResult = RowCounts | str
"""What became of the rows of a task, or what is wrong with it."""


def run_jobs(jobs: Sequence[PrepareJob], processes: int) -> Iterator[tuple[str, JobResult]]:
    """Prepares tasks, and yields the id and the result of each when it is done.

    Args:
        jobs: The tasks.
        processes: How many processes work side by side; 1 is this one alone.

    Raises:
        UserError: If a process was killed.
    """
    groups = [_JobGroup(found) for found in _group_by_rows(jobs)]
    try:
        if processes > 1 and len(groups) == 1:  # a small task is done before a process has started
            yield from _run_here(groups[0], most=1)
        shared = [group for group in groups if not group.is_done and group.pickled is not None]
        if processes > 1 and shared:
            for group in groups:
                if not group.is_done and group.pickled is None:
                    yield from _run_here(group)
            yield from _run_shared(shared, processes)
        else:
            for group in groups:
                yield from _run_here(group)
    finally:
        for group in groups:
            group.remove_parts()


def make_cache_key(job: PrepareJob) -> str:
    """Returns the cache key of a task's prepared rows."""
    rendering_key = task_rows.rendering_key(job.spec, job.source)
    return prepared_files.make_cache_key(rendering_key, job.tokenizer, job.lengths)


class _JobGroup:
    """Tasks that share rows: what of them was given out, and what came back."""

    def __init__(self, jobs: Sequence[PrepareJob]) -> None:
        self.jobs = jobs
        self.pickled = _pickle(jobs)
        self.directories = [
            str(job.file.parent / f".{job.file.name}.{uuid.uuid4().hex}.parts") for job in jobs
        ]
        self.next_row, self.rows, self.in_flight = 0, -1, 0  # the first range says how many rows there are
        self.is_done = False
        self.problems: dict[int, str] = {}
        self.parts: dict[int, dict[int, RangePart]] = {number: {} for number in range(len(jobs))}
        for job in jobs:
            _remove_stale_parts(job.file)

    @property
    def wanted(self) -> list[int]:
        """Numbers of the tasks that need more rows."""
        limit = self.jobs[0].source.limit
        return [
            number
            for number, parts in self.parts.items()
            if number not in self.problems
            and (limit is None or sum(part.counts.used for part in parts.values()) < limit)
        ]

    @property
    def has_more(self) -> bool:
        """Whether there is a range to give out."""
        if self.is_done or not self.wanted:
            return False
        return self.next_row < self.rows if self.rows >= 0 else self.next_row == 0

    def give_out(self) -> tuple[range, dict[int, str]]:
        """Returns the next range, and where the parts of the tasks that need it are written."""
        span = range(self.next_row, self.next_row + row_ranges.range_length(self.jobs))
        self.next_row = span.stop
        self.in_flight += 1
        return span, {number: self.directories[number] for number in self.wanted}

    def take_back(self, result: PreparedRange | UserError) -> None:
        """Notes the result of a range."""
        self.in_flight -= 1
        if isinstance(result, UserError):
            self.problems |= dict.fromkeys(range(len(self.jobs)), str(result))
            return
        self.rows = result.rows
        for number, part in result.parts.items():
            if isinstance(part, str):
                self.problems.setdefault(number, part)
            else:
                self.parts[number][result.start] = part

    def finish(self) -> Iterator[tuple[str, JobResult]]:
        """Joins the parts of every task, if all are there."""
        if self.is_done or self.in_flight or self.has_more:
            return
        self.is_done = True
        for number, job in enumerate(self.jobs):
            try:
                yield job.spec.id, self.problems.get(number) or self._join_ranges(number, job)
            except UserError as error:
                yield job.spec.id, str(error)
        self.remove_parts()

    def _join_ranges(self, number: int, job: PrepareJob) -> RowCounts:
        parts = self._cut_to_limit(number, dict(sorted(self.parts[number].items())))
        unused = [row for part in parts.values() for row in part.unused]
        require_columns(unused, frozenset[str]().union(*(part.columns for part in parts.values())))
        counts = add_counts(part.counts for part in parts.values())
        rendering.require_usable(job.spec, counts, unused, job.source)
        files = [
            row_ranges.part_file(self.directories[number], start)
            for start, part in parts.items()
            if part.counts.used
        ]
        # The key is computed last: what the first reading fetches (TFDS's files) is a part of it.
        prepared_parts.join_parts(files, job.file, make_cache_key(job), counts)
        return counts

    def _cut_to_limit(self, number: int, parts: dict[int, RangePart]) -> dict[int, RangePart]:
        """Returns the parts up to the limit of rows; the last is made again if it has too many."""
        limit = self.jobs[number].source.limit
        if limit is None:
            return parts
        kept: dict[int, RangePart] = {}
        for start, part in parts.items():
            if limit < part.counts.used:
                group = row_ranges.open_group([self.jobs[number]])
                span = range(start, start + row_ranges.range_length(self.jobs))
                again = row_ranges.prepare_range(group, span, {0: self.directories[number]}, limit)
                (remade,) = again.parts.values()
                assert isinstance(remade, RangePart)
                part = remade
            kept[start] = part
            limit -= part.counts.used
            if not limit:
                break
        return kept

    def remove_parts(self) -> None:
        """Deletes all parts."""
        for directory in map(storage.path, self.directories):
            if directory.exists():
                directory.rmtree()


def _run_here(group: _JobGroup, most: int | None = None) -> Iterator[tuple[str, JobResult]]:
    """Prepares a group, or so many ranges of it, in this process."""
    opened = None
    while group.has_more and most != 0:
        span, directories = group.give_out()
        try:
            opened = opened or row_ranges.open_group(group.jobs)
            group.take_back(row_ranges.prepare_range(opened, span, directories))
        except UserError as error:
            group.take_back(error)
        most = None if most is None else most - 1
    yield from group.finish()


def _run_shared(groups: Sequence[_JobGroup], processes: int) -> Iterator[tuple[str, JobResult]]:
    """Prepares groups in other processes."""
    pending: dict[Future[PreparedRange], _JobGroup] = {}
    with worker_pool.open_pool(processes) as pool:
        try:
            while pending or any(group.has_more for group in groups):
                while len(pending) < RANGES_PER_PROCESS * processes:
                    group = next((group for group in groups if group.has_more), None)
                    if group is None:
                        break
                    pending[
                        pool.submit(row_ranges.prepare_sent_range, group.pickled or b"", *group.give_out())
                    ] = group
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    group, error = pending.pop(future), future.exception()
                    if error is not None and not isinstance(error, UserError):
                        raise error
                    group.take_back(error or future.result())
                    yield from group.finish()
        except BrokenProcessPool as error:
            raise UserError(
                "Expected the processes that prepare tasks to end by themselves, got one that was killed, "
                "perhaps because memory ran out. Fix: run the same command again, with fewer processes; what "
                "is prepared is kept."
            ) from error


def _pickle(jobs: Sequence[PrepareJob]) -> bytes | None:
    """Returns jobs as they are sent to another process; None for those with a nested function."""
    try:
        return pickle.dumps(list(jobs))
    except (pickle.PicklingError, AttributeError, TypeError):
        return None


def _group_by_rows(jobs: Sequence[PrepareJob]) -> list[list[PrepareJob]]:
    """Groups tasks that read the same rows, so that the rows are read once."""
    groups: dict[str, list[PrepareJob]] = {}
    for job in jobs:
        try:
            key = storage.fingerprint(identity.identify_rows(job.spec, job.source))
        except UserError:  # preparing the task raises it again
            key = job.spec.id
        groups.setdefault(key, []).append(job)
    return list(groups.values())


def _remove_stale_parts(file: epath.Path) -> None:
    """Deletes the parts that a process left behind when it was killed; no other works here now."""
    for directory in file.parent.glob(f".{file.name}.*.parts"):
        directory.rmtree()
