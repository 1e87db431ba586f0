"""Raw rows: a split of a task's dataset in the templates' columns, before any template is applied."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from elm_jax.records import TaskSpec
from elm_jax.tasks import columns, mini, original, sources, subsets
from elm_jax.tasks.data_source import Source, get_split
from elm_jax.tasks.datasets import all_datasets, training
from elm_jax.tasks.specs import is_embedded

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


class SharedRows(Iterable[RawRow]):
    """Rows that several prompts of a dataset read: each is read once, when the first prompt needs it."""

    def __init__(self, rows: Iterator[RawRow]) -> None:
        self._rest = rows
        self._known: list[RawRow] = []

    def __iter__(self) -> Iterator[RawRow]:
        for place in itertools.count():
            if place == len(self._known):
                row = next(self._rest, None)
                if row is None:
                    return
                self._known.append(row)
            yield self._known[place]


def load_rows(spec: TaskSpec, source: Source) -> list[RawRow]:
    """Returns the rows that `open_rows` opens, no more than the source's limit."""
    rows = open_rows(spec, source)
    return list(rows.read(0, min(rows.count, source.limit or rows.count)))


def iterate_rows(spec: TaskSpec, source: Source) -> Iterator[RawRow]:
    """Yields the rows that `open_rows` opens, read in blocks that double, the first as large as the limit."""
    rows = open_rows(spec, source)
    start, size = 0, source.limit or rows.count
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
    if is_embedded(spec):
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

    def read(start: int, stop: int) -> Iterator[RawRow]:
        chosen = numbers[start:stop]
        adapted = columns.adapt_rows(
            opened.take(chosen),
            opened.source.adapter,
            file=opened.origin,
            columns=[name for name in dataset.columns if name not in opened.source.lacks],
            numbers=chosen,
        )
        # The rows come first, so that their end is reached and a column that all of them lack is found.
        numbered: Iterable[tuple[int, RawRow]] = (
            (number, row) for row, number in zip(adapted, chosen, strict=False)
        )
        if "dbpedia_labels" in settings:
            numbered = original.shift_classes(numbered, settings["dbpedia_labels"])
        return ({**row, "row_id": f"{name}/{number}"} for number, row in numbered)

    return RawRows(count, read)
