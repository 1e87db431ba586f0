"""Row ranges: the rows that several prompts share, rendered and tokenised range by range.

A range is read once for all prompts, and what it gives is a part of each one's file (`prepared_parts`), so
memory holds one range, and processes can share one task.
"""

import functools
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from etils import epath

from elm_jax import storage
from elm_jax.data import prepared_files, tokenized_rows
from elm_jax.errors import UserError
from elm_jax.prompting.templates import Template
from elm_jax.records import RowCounts, TaskSpec, UnusedRow
from elm_jax.tasks import datasets, raw_rows, rendering, task_templates
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.tasks.datasets import Dataset
from elm_jax.tasks.raw_rows import RawRows
from elm_jax.tokenizers.sentencepiece import Tokenizer

RENDERINGS_PER_RANGE = 8192
"""About so many rows a range gives, over all prompts."""
FEWEST_ROWS = 256


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
class RowGroup:
    """Tasks whose prompts share rows, ready to be rendered.

    Attributes:
        jobs: The tasks.
        rows: The rows.
        templates: The template of each task, or what is wrong with it.
    """

    jobs: Sequence[PrepareJob]
    rows: RawRows
    templates: Sequence[Template | str]


@dataclass(frozen=True)
class RangePart:
    """What became of a range of rows for one task; its examples are in a file.

    Attributes:
        counts: Rows that were read, used, left out and cut.
        unused: The first row that was left out for each reason, and for each column that rows lack.
        columns: Columns that rows have.
    """

    counts: RowCounts
    unused: tuple[UnusedRow, ...]
    columns: frozenset[str]


@dataclass(frozen=True)
class PreparedRange:
    """What a range of rows gave.

    Attributes:
        start: Position of its first row.
        rows: Rows of all ranges together.
        parts: By the number of the task, what the range gave, or what is wrong.
    """

    start: int
    rows: int
    parts: Mapping[int, RangePart | str]


def open_group(jobs: Sequence[PrepareJob]) -> RowGroup:
    """Opens the rows that tasks share.

    Raises:
        UserError: If the rows cannot be read.
    """
    for job in jobs:
        datasets.add_user_datasets(job.user_datasets)
    templates: list[Template | str] = []
    for job in jobs:
        try:
            templates.append(task_templates.find_template(job.spec, job.source.templates_dir))
        except UserError as error:
            templates.append(str(error))
    return RowGroup(jobs, raw_rows.open_rows(jobs[0].spec, jobs[0].source), templates)


def range_length(jobs: Sequence[PrepareJob]) -> int:
    """Returns how many rows a range of tasks has, however many processes there are."""
    limit = jobs[0].source.limit
    length = max(FEWEST_ROWS, RENDERINGS_PER_RANGE // len(jobs))
    return length if limit is None else min(length, limit)


def prepare_sent_range(pickled: bytes, span: range, directories: Mapping[int, str]) -> PreparedRange:
    """Does what `prepare_range` does, in another process, for the pickled jobs of a group."""
    return prepare_range(_open_sent(pickled), span, directories)


# A process gets one range of a group after the other.
@functools.lru_cache(maxsize=1)
def _open_sent(pickled: bytes) -> RowGroup:
    return open_group(pickle.loads(pickled))


def prepare_range(
    group: RowGroup, span: range, directories: Mapping[int, str], limit: int | None = None
) -> PreparedRange:
    """Renders and tokenises one range of rows into a part of each task's file.

    Args:
        group: The tasks and their rows.
        span: Positions of the rows; beyond the last row there are none.
        directories: By the number of each task that is wanted, where its parts are written.
        limit: Examples at most.

    Raises:
        UserError: If rows cannot be read.
    """
    rows = list(group.rows.read(span.start, min(span.stop, group.rows.count)))
    parts: dict[int, RangePart | str] = {}
    for number, directory in directories.items():
        job, template = group.jobs[number], group.templates[number]
        if isinstance(template, str):
            parts[number] = template
            continue
        try:
            found = rendering.render_part(job.spec, rows, template, job.source, limit=limit)
            if found.examples:
                made = tokenized_rows.tokenize_examples(found, job.tokenizer, job.lengths)
                prepared_files.save(part_file(directory, span.start), made, "part", is_part=True)
            parts[number] = RangePart(found.counts, found.unused, found.columns)
        except UserError as error:
            parts[number] = str(error)
    return PreparedRange(span.start, group.rows.count, parts)


def part_file(directory: storage.PathLike, start: int) -> epath.Path:
    """Returns the file of the part of the rows from a position on."""
    return storage.path(directory) / f"{start:012}.safetensors"
