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
from elm_jax.data import tokenized_rows
from elm_jax.errors import UserError
from elm_jax.prompting.templates import Template
from elm_jax.records import TaskSpec
from elm_jax.tasks import datasets, raw_rows, rendering, task_templates
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.tasks.datasets import Dataset
from elm_jax.tasks.raw_rows import RawRows
from elm_jax.tokenizers.sentencepiece import Tokenizer

RENDERINGS = 8192
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
    """What a range of rows gave for one task.

    Attributes:
        rows: Rows of the part.
        skipped: Rows that gave no example.
        outside: Examples whose target is none of their choices.
    """

    rows: int
    skipped: int
    outside: int


@dataclass(frozen=True)
class RangeResult:
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


def range_length(tasks: int) -> int:
    """Returns how many rows a range has if so many tasks share them, however many processes there are."""
    return max(FEWEST_ROWS, RENDERINGS // tasks)


def prepare_sent_range(
    pickled: bytes, numbers: Sequence[int], start: int, directories: Sequence[str]
) -> RangeResult:
    """Does what `prepare_range` does, in another process, for the pickled jobs of a group."""
    return prepare_range(_open_sent(pickled), numbers, start, directories)


# A process gets one range of a group after the other.
@functools.lru_cache(maxsize=1)
def _open_sent(pickled: bytes) -> RowGroup:
    return open_group(pickle.loads(pickled))


def prepare_range(
    group: RowGroup, numbers: Sequence[int], start: int, directories: Sequence[str]
) -> RangeResult:
    """Renders and tokenises one range of rows into a part of each task's file.

    Args:
        group: The tasks and their rows.
        numbers: Which of the tasks are wanted.
        start: Position of the first row.
        directories: Where each task's parts are written.

    Raises:
        UserError: If rows cannot be read.
    """
    stop = min(start + range_length(len(group.jobs)), group.rows.count)
    rows = list(group.rows.read(start, stop))
    parts: dict[int, RangePart | str] = {}
    for number in numbers:
        job, template = group.jobs[number], group.templates[number]
        if isinstance(template, str):
            parts[number] = template
            continue
        try:
            rendered = rendering.render_range(job.spec, rows, template, job.source)
            if rendered.examples:
                made = tokenized_rows.tokenize_examples(rendered.examples, job.tokenizer, job.lengths)
                tokenized_rows.save(part_file(directories[number], start), made, "part")
            parts[number] = RangePart(len(rendered.examples), rendered.skipped, rendered.outside)
        except UserError as error:
            parts[number] = str(error)
    return RangeResult(start, group.rows.count, parts)


def part_file(directory: storage.PathLike, start: int) -> epath.Path:
    """Returns the file of the part of the rows from a position on."""
    return storage.path(directory) / f"{start:012}.safetensors"
