"""Split files: the rows of a split that lie in one or several files."""

import functools
import os
from collections.abc import Iterable, Sequence

from elm_jax import storage
from elm_jax.tasks import files
from elm_jax.tasks.csv_types import CsvRows, type_columns
from elm_jax.tasks.datasets import READERS, RowSource
from elm_jax.tasks.file_rows import FileRows, file_version, join_rows


def read_files(
    source: RowSource, paths: Iterable[storage.PathLike], number_columns: Sequence[str] | None = None
) -> FileRows:
    """Returns the rows of files, one file after the other.

    Args:
        source: Its kind is one of `READERS`; its `header`, `delimiter` and `encoding` are those of the files.
        paths: The files.
        number_columns: Makes numbers of whole numbers in CSV, and requires them in these columns, as
            `csv_types.type_columns` does; default: every value of CSV is a text.
    """
    options = (source.header, source.delimiter, source.encoding)
    parts = [_read_file(source.kind, options, os.fspath(path), file_version(path)) for path in paths]
    if number_columns is not None and source.kind == "csv":
        return type_columns([part for part in parts if isinstance(part, CsvRows)], number_columns)
    return join_rows(parts)


# A dataset's prompts read the same files.
@functools.lru_cache(maxsize=64)
def _read_file(
    kind: str, options: tuple[tuple[str, ...], str, str], path: str, version: tuple[int, int]
) -> FileRows:
    header, delimiter, encoding = options
    if kind == "csv":
        return files.read_csv(path, header, delimiter=delimiter, encoding=encoding)
    return files.read_jsonl(path, encoding) if kind == "jsonl" else READERS[kind](path)
