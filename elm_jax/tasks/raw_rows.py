"""Raw rows: a split of a task's dataset in the templates' columns, before any template is applied."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """The rows that a source takes of a split.

    Attributes:
        count: Number of rows.
        read: Yields the rows from one position to before another, read as they are asked for.
    """

    count: int
    read: Callable[[int, int], Iterator[RawRow]]


def load_rows(spec: TaskSpec, source: Source) -> list[RawRow]:
    """Returns the rows of a split as plain Python values by column, with their ids in `row_id`.

    Args:
        spec: The task.
        source: Which split is read, from where, and how many rows of it are taken.

    Raises:
        UserError: If no source of the dataset is available, or if a file or a column is missing.
    """
    rows = open_rows(spec, source)
    return list(rows.read(0, rows.count))


def open_rows(spec: TaskSpec, source: Source) -> RawRows:
    """Opens the rows that `load_rows` returns, so that they need not all be in memory.

    Raises:
        UserError: If no source of the dataset is available, or if a file is missing. A column that is missing
            is noticed in reading.
    """
    split, limit = get_split(spec, source), source.limit
    if is_embedded(spec):
        made = mini.make_rows(spec.dataset, split, seed=source.seed)[:limit]
        return RawRows(len(made), lambda start, stop: iter(made[start:stop]))
    dataset = all_datasets()[spec.dataset]
    switches = original.parse_switches(source.faithful)
    settings = {name: value for name, value in dataset.faithful.items() if name in switches}
    opened = sources.open_split(
        dataset, split, source.data_dir, prompt=spec.prompt, repeated_file=settings.get("homonyms")
    )
    if limit is None and dataset.training and split == dataset.split:
        limit = training(dataset, spec.prompt).rows
    if limit is None or "first_rows" in settings:
        numbers = subsets.first_rows(opened.count, opened.count if limit is None else limit)
    else:
        numbers = subsets.shuffled_rows(opened.count, limit, seed=source.seed)
    # Files that differ by prompt have other rows for every prompt.
    by_prompt = any("{prompt}" in file for files in opened.source.files.values() for file in files)
    name = f"{dataset.name}/{spec.prompt}/{split}" if by_prompt else f"{dataset.name}/{split}"

    @functools.cache
    def take_all() -> Sequence[Mapping[str, Any]]:
        return list(opened.take(numbers))

    def read(start: int, stop: int) -> Iterator[RawRow]:
        chosen = numbers[start:stop]
        adapted = columns.adapt_rows(
            take_all()[start:stop] if opened.reads_all else opened.take(chosen),
            opened.source.adapter,
            label=dataset.label,
            file=opened.origin,
            columns=[name for name in dataset.columns if name not in opened.source.lacks],
            numbers=chosen,
        )
        numbered = zip(chosen, adapted, strict=True)
        if "dbpedia_labels" in settings:
            numbered = original.shift_classes(numbered, settings["dbpedia_labels"])
        return ({**row, "row_id": f"{name}/{number}"} for number, row in numbered)

    return RawRows(len(numbers), read)
