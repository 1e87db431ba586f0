"""Raw rows: a split of a task's dataset in the templates' columns, before any template is applied."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elm_jax.records import TaskSpec
from elm_jax.tasks import columns, mini, original, sources, subsets
from elm_jax.tasks.data_source import Source, get_split
from elm_jax.tasks.datasets import all_datasets, training
from elm_jax.tasks.specs import is_mini_task

RawRow = dict[str, Any]


@dataclass(frozen=True)
class RawRows:
    """The rows of a split in the order in which a source takes them.

    Attributes:
        count: Number of rows. The source's limit does not lower it: a row that cannot be used is made up for.
        read: Yields the rows from one position to before another, read as they are asked for.
    """

    count: int
    read: Callable[[int, int], Iterator[RawRow]]


def load_rows(spec: TaskSpec, source: Source) -> list[RawRow]:
    """Returns the rows that `open_rows` opens, no more than the source's limit."""
    rows = open_rows(spec, source)
    return list(rows.read(0, min(rows.count, source.limit or rows.count)))


def iterate_rows(spec: TaskSpec, source: Source) -> Iterator[RawRow]:
    """Yields the rows that `open_rows` opens, read in blocks of which the first is as large as the limit."""
    rows = open_rows(spec, source)
    return read_in_blocks(rows, source.limit or rows.count)


def read_in_blocks(rows: RawRows, size: int) -> Iterator[RawRow]:
    """Yields all rows, read as they are asked for in blocks that double, the first of this size."""
    start = 0
    while start < rows.count:
        yield from rows.read(start, min(start + size, rows.count))
        start, size = start + size, 2 * size


def open_rows(spec: TaskSpec, source: Source) -> RawRows:
    """Opens the rows of a split as plain Python values by column, with their ids in `row_id`.

    Args:
        spec: The task.
        source: Which split is read, from where, and whether a limit shuffles it.

    Raises:
        UserError: If no source of the dataset is available, or if a file is missing. A column that is missing
            is noticed in reading.
    """
    split, limit = get_split(spec, source), source.limit
    if is_mini_task(spec):
        made = mini.make_rows(spec.dataset, split, seed=source.seed)
        return RawRows(len(made), lambda start, stop: iter(made[start:stop]))
    dataset = all_datasets()[spec.dataset]
    switches = original.parse_switches(source.faithful)
    settings = {name: value for name, value in dataset.faithful.items() if name in switches}
    opened = sources.open_split(
        dataset, split, source.data_dir, prompt=spec.prompt, repeated_file=settings.get("homonyms")
    )
    capped = limit is None and dataset.training is not None and split == dataset.split
    count = min(opened.count, training(dataset, spec.prompt).rows) if capped else opened.count
    numbers: Sequence[int] = range(count)
    if "first_rows" not in settings and (capped or limit is not None):
        numbers = subsets.ShuffledNumbers(opened.count, count, seed=source.seed)
    # Files that differ by prompt have other rows for every prompt.
    by_prompt = any("{prompt}" in file for files in opened.source.files.values() for file in files)
    name = f"{dataset.name}/{spec.prompt}/{split}" if by_prompt else f"{dataset.name}/{split}"

    known: list[Mapping[str, Any]] = []

    def take_known(start: int, stop: int) -> list[Mapping[str, Any]]:
        if stop > len(known):  # twice as many, so that the split is read from the front a few times only
            known.extend(opened.take(numbers[len(known) : max(stop, 2 * len(known))]))
        return known[start:stop]

    def read(start: int, stop: int) -> Iterator[RawRow]:
        chosen, is_part = numbers[start:stop], (start, stop) != (0, count)
        adapted = columns.convert_rows(
            take_known(start, stop) if opened.scans_from_start and is_part else opened.take(chosen),
            opened.source.adapter,
            file=opened.origin,
            columns=[name for name in dataset.columns if name not in opened.source.lacks],
            numbers=chosen,
            is_part=is_part,
        )
        # The rows come first, so that their end is reached and a column that all of them lack is found.
        numbered: Iterable[tuple[int, RawRow]] = (
            (number, row) for row, number in zip(adapted, chosen, strict=False)
        )
        if "dbpedia_labels" in settings:
            numbered = original.shift_classes(numbered, settings["dbpedia_labels"])
        return ({**row, "row_id": f"{name}/{number}"} for number, row in numbered)

    return RawRows(count, read)
