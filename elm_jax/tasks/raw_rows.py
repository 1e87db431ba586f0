"""Raw rows: a split of a task's dataset in the templates' columns, before any template is applied."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from elm_jax.records import TaskSpec
from elm_jax.tasks import columns, mini, original, sources, subsets
from elm_jax.tasks.data_source import Source, get_split
from elm_jax.tasks.datasets import all_datasets, training
from elm_jax.tasks.specs import is_embedded

Row = dict[str, Any]


def load_rows(spec: TaskSpec, source: Source) -> list[Row]:
    """Returns the rows that `iterate_rows` yields, no more than the source's limit."""
    return list(itertools.islice(iterate_rows(spec, source), source.limit))


def iterate_rows(spec: TaskSpec, source: Source) -> Iterator[Row]:
    """Yields the rows of a split as plain Python values by column, with their ids in `row_id`.

    A limit of the source changes their order, to that of a permutation, and not their number: a row that
    cannot be used has to be made up for. Rows are read in blocks, the first as large as the limit.

    Args:
        spec: The task.
        source: Which split is read, from where, and how many rows of it are to be used.

    Raises:
        UserError: If no source of the dataset is available, or if a file or a column is missing.
    """
    split, limit = get_split(spec, source), source.limit
    if is_embedded(spec):
        yield from mini.make_rows(spec.dataset, split, seed=source.seed)
        return
    dataset = all_datasets()[spec.dataset]
    switches = original.parse_switches(source.faithful)
    settings = {name: value for name, value in dataset.faithful.items() if name in switches}
    opened = sources.open_split(
        dataset, split, source.data_dir, prompt=spec.prompt, repeated_file=settings.get("homonyms")
    )
    capped = limit is None and bool(dataset.training) and split == dataset.split
    most = min(opened.count, training(dataset, spec.prompt).rows) if capped else opened.count
    in_order = "first_rows" in settings or (limit is None and not capped)
    blocks = _number_blocks(opened.count, most, limit or most, None if in_order else source.seed)
    to_read, to_adapt, to_name = itertools.tee(blocks, 3)
    adapted = columns.adapt_rows(
        itertools.chain.from_iterable(map(opened.take, to_read)),
        opened.source.adapter,
        file=opened.origin,
        columns=[name for name in dataset.columns if name not in opened.source.lacks],
        numbers=itertools.chain.from_iterable(to_adapt),
    )
    # The rows come first, so that their end is reached and what all of them lack is found.
    paired = zip(adapted, itertools.chain.from_iterable(to_name), strict=False)
    numbered: Iterable[tuple[int, Row]] = ((number, row) for row, number in paired)
    if "dbpedia_labels" in settings:
        numbered = original.shift_classes(numbered, settings["dbpedia_labels"])
    # Files that differ by prompt have other rows for every prompt.
    by_prompt = any("{prompt}" in file for files in opened.source.files.values() for file in files)
    name = f"{dataset.name}/{spec.prompt}/{split}" if by_prompt else f"{dataset.name}/{split}"
    for number, row in numbered:
        yield {**row, "row_id": f"{name}/{number}"}


class SharedRows(Iterable[Row]):
    """Rows that several prompts of a dataset read: each is read once, when the first prompt needs it."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self._rest = rows
        self._known: list[Row] = []

    def __iter__(self) -> Iterator[Row]:
        for place in itertools.count():
            if place == len(self._known):
                row = next(self._rest, None)
                if row is None:
                    return
                self._known.append(row)
            yield self._known[place]


def _number_blocks(count: int, most: int, size: int, seed: int | None) -> Iterator[Sequence[int]]:
    """Yields the numbers of `most` of `count` rows, in order or shuffled, in blocks that double in size."""
    start = 0
    while start < most:
        end = min(start + size, most)
        if seed is None:
            yield range(start, end)
        else:
            yield subsets.shuffled_rows(count, end, seed=seed)[start:]
        start, size = end, 2 * size
