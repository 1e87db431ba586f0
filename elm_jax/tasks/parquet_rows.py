"""Parquet rows: the rows of a Parquet file, of which a batch at a time is in memory."""

import bisect
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.tasks.file_rows import FileRow, FileRows, require_rows

ROWS_PER_READ = 1024
ROWS_PER_SHUFFLED_READ = 32768
"""Rows that are read together if they are asked for in another order than the file's."""


def open_parquet(file: storage.PathLike) -> FileRows:
    """Opens a Parquet file.

    Raises:
        UserError: If there is no such file, or if it has no rows.
    """
    import pyarrow as arrow  # comes with tensorflow-datasets
    from pyarrow import parquet

    try:
        opened = parquet.ParquetFile(os.fspath(storage.path(file)))
    except (OSError, arrow.ArrowException) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(
            f"Expected a Parquet file at {str(file)!r}, got: {reason}. Fix: correct the path or the file."
        ) from error

    def take(numbers: Sequence[int]) -> Iterator[FileRow]:
        if isinstance(numbers, range) and numbers.step == 1:
            return (row for _, row in _read_in_order(opened, numbers))
        parts = (
            numbers[at : at + ROWS_PER_SHUFFLED_READ] for at in range(0, len(numbers), ROWS_PER_SHUFFLED_READ)
        )
        return itertools.chain.from_iterable(_read_shuffled(opened, part) for part in parts)

    return require_rows(FileRows(opened.metadata.num_rows, take), file)


def open_arrow(file: storage.PathLike) -> FileRows:
    """Opens a file of a directory that `save_to_disk` of the package datasets wrote, memory-mapped.

    Raises:
        UserError: If there is no such file, or if it has no rows.
    """
    import pyarrow as arrow

    try:
        table = arrow.ipc.open_stream(arrow.memory_map(os.fspath(storage.path(file)))).read_all()
    except (OSError, arrow.ArrowException) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(
            f"Expected a directory that `save_to_disk` wrote, with a file of Arrow's at {str(file)!r}, got: "
            f"{reason}. Fix: correct the path."
        ) from error

    def take(numbers: Sequence[int]) -> Iterator[FileRow]:
        for at in range(0, len(numbers), ROWS_PER_READ):
            yield from table.take(list(numbers[at : at + ROWS_PER_READ])).to_pylist()

    return require_rows(FileRows(table.num_rows, take), file)


def _read_shuffled(opened: Any, numbers: Sequence[int]) -> Iterator[FileRow]:
    found = dict(_read_in_order(opened, sorted(set(numbers))))
    return (found[number] for number in numbers)


def _read_in_order(opened: Any, numbers: Iterable[int]) -> Iterator[tuple[int, FileRow]]:
    """Yields the rows of ascending numbers; row groups without any of them are not read."""
    sizes = [opened.metadata.row_group(group).num_rows for group in range(opened.metadata.num_row_groups)]
    edges = list(itertools.accumulate(sizes, initial=0))
    for group, of_group in itertools.groupby(numbers, lambda number: bisect.bisect_right(edges, number) - 1):
        start, wanted = edges[group], list(of_group)
        for batch in opened.iter_batches(ROWS_PER_READ, row_groups=[group]):
            here = bisect.bisect_left(wanted, start + len(batch))
            chosen, wanted = wanted[:here], wanted[here:]
            yield from zip(chosen, batch.take([number - start for number in chosen]).to_pylist(), strict=True)
            start += len(batch)
            if not wanted:
                break
