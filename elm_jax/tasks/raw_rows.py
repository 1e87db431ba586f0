"""Raw rows: a split of a task's dataset in the templates' columns, before any template is applied."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elm_jax.records import TaskSpec
from elm_jax.tasks import columns, mini, original, sources, subsets
from elm_jax.tasks.data_source import Source, get_split
from elm_jax.tasks.datasets import all_datasets, training
from elm_jax.tasks.sources import OpenSplit
from elm_jax.tasks.specs import is_embedded

Row = dict[str, Any]


@dataclass(frozen=True)
class RawRows:
    """The rows of a split, of which none is read before it is asked for.

    Attributes:
        count: Number of rows.
        read: Yields the rows from one position to before another.
    """

    count: int
    read: Callable[[int, int], Iterator[Row]]


def load_rows(spec: TaskSpec, source: Source) -> list[Row]:
    """Returns the rows that `iterate_rows` yields, no more than the source's limit."""
    return list(itertools.islice(iterate_rows(spec, source), source.limit))


def iterate_rows(spec: TaskSpec, source: Source) -> Iterator[Row]:
    """Yields the rows of a split as plain Python values by column, with their ids in `row_id`.

    A limit of the source changes their order, to that of a permutation, and not their number: a row that
    cannot be used has to be made up for. Rows are read as they are asked for.

    Args:
        spec: The task.
        source: Which split is read, from where, and how many rows of it are to be used.

    Raises:
        UserError: If no source of the dataset is available, or if a file or a column is missing.
    """
    rows = open_rows(spec, source)
    yield from rows.read(0, rows.count)


def open_rows(spec: TaskSpec, source: Source) -> RawRows:
    """Opens the rows that `iterate_rows` yields, to read some of them.

    That all of them lack a column is found when they are read from first to last.

    Raises:
        UserError: If no source of the dataset is available, or if a file is missing.
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
    capped = limit is None and bool(dataset.training) and split == dataset.split
    most = min(opened.count, training(dataset, spec.prompt).rows) if capped else opened.count
    in_order = "first_rows" in settings or (limit is None and not capped)
    order = _RowOrder(opened.count, most, None if in_order else source.seed, limit or most)
    once = _ReadOnce(opened, order)
    # Files that differ by prompt have other rows for every prompt.
    by_prompt = any("{prompt}" in file for files in opened.source.files.values() for file in files)
    name = f"{dataset.name}/{spec.prompt}/{split}" if by_prompt else f"{dataset.name}/{split}"

    def read(start: int, stop: int) -> Iterator[Row]:
        is_part = (start, stop) != (0, most)
        take = once.take if is_part and opened.reads_all else opened.take
        to_read, to_adapt, to_name = itertools.tee(order.blocks(start, stop), 3)
        adapted = columns.adapt_rows(
            itertools.chain.from_iterable(map(take, to_read)),
            opened.source.adapter,
            file=opened.origin,
            columns=[name for name in dataset.columns if name not in opened.source.lacks],
            numbers=itertools.chain.from_iterable(to_adapt),
            is_part=is_part,
        )
        # The rows come first, so that their end is reached and what all of them lack is found.
        paired = zip(adapted, itertools.chain.from_iterable(to_name), strict=False)
        numbered: Iterable[tuple[int, Row]] = ((number, row) for row, number in paired)
        if "dbpedia_labels" in settings:
            numbered = original.shift_classes(numbered, settings["dbpedia_labels"])
        return ({**row, "row_id": f"{name}/{number}"} for number, row in numbered)

    return RawRows(most, read)


class SharedRows(Iterable[Row]):
    """Rows that several prompts of a dataset read: each is read once, when the first prompt needs it."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self._rest = rows
        self.known: list[Row] = []

    def __iter__(self) -> Iterator[Row]:
        for place in itertools.count():
            if place == len(self.known):
                row = next(self._rest, None)
                if row is None:
                    return
                self.known.append(row)
            yield self.known[place]


class _RowOrder:
    """The numbers of `most` of `count` rows, in order or shuffled, made as far as they are read."""

    def __init__(self, count: int, most: int, seed: int | None, size: int) -> None:
        self._count, self._most, self._seed, self._size = count, most, seed, size
        self.known: Sequence[int] = range(most) if seed is None else ()

    def blocks(self, start: int, stop: int) -> Iterator[Sequence[int]]:
        """Yields the numbers from one position to before another, in blocks that double in size."""
        size = self._size
        while start < stop:
            end = min(start + size, stop)
            if end > len(self.known) and self._seed is not None:
                known = min(self._most, max(end, 2 * len(self.known)))
                self.known = subsets.shuffled_rows(self._count, known, seed=self._seed)
            yield self.known[start:end]
            start, size = end, 2 * size


class _ReadOnce:
    """Rows of a source that can only be read from the front: all in one go, when the first is asked for."""

    def __init__(self, opened: OpenSplit, order: _RowOrder) -> None:
        self._opened, self._order = opened, order
        self._rows: dict[int, Mapping[str, Any]] = {}

    def take(self, numbers: Sequence[int]) -> Iterator[Mapping[str, Any]]:
        if any(number not in self._rows for number in numbers):
            wanted = self._order.known
            self._rows |= zip(wanted, self._opened.take(wanted), strict=True)
        return (self._rows[number] for number in numbers)
