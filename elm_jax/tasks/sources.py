"""Sources: opens one split of a dataset wherever its rows are available.

`open_split` returns the number of rows and a function that reads rows by their numbers, for every kind of
source. Files are read below the data directory; TFDS and the hub are read through their own libraries, which
are imported only when one of their datasets is opened.
"""

import importlib
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from elm_jax import names, storage
from elm_jax.errors import MissingDatasetRowsError, UserError
from elm_jax.extras import install_command
from elm_jax.names import lower_first
from elm_jax.tasks.datasets import Dataset, RowSource
from elm_jax.tasks.file_rows import FileRows, hold_rows_in_memory
from elm_jax.tasks.source_choice import choose_source, find_remedy, find_tfds_directory
from elm_jax.tasks.split_files import read_files

HUB_BATCH = 1024


@dataclass(frozen=True)
class OpenSplit:
    """A split whose rows can be read.

    Attributes:
        source: The source that it was opened at.
        origin: Its name in errors and reports: a file, a builder, or a dataset of the hub.
        count: Number of rows.
        take: Yields the rows of some numbers, from 0, in the order of the numbers.
        scans_from_start: Whether every call of `take` reads the split from the front.
    """

    source: RowSource
    origin: str
    count: int
    take: Callable[[Sequence[int]], Iterable[Mapping[str, Any]]]
    scans_from_start: bool = False


def open_split(
    dataset: Dataset,
    split: str,
    data_dir: storage.PathLike | None = None,
    *,
    prompt: str = "",
    repeated_file: str | None = None,
) -> OpenSplit:
    """Opens a split at the source that `choose_source` finds.

    Args:
        dataset: The dataset.
        split: Our name of the split.
        data_dir: Directory of datasets.
        prompt: The prompt, for files that differ by prompt.
        repeated_file: A file that is read once more after the others.

    Raises:
        UserError: If no source is available, if the split is unknown, or if a file cannot be read.
    """
    split = names.resolve(split, dataset.splits, kind="split", where=f"dataset {dataset.name!r}")
    source = choose_source(dataset, data_dir)
    source_split = source.splits.get(split, split)
    if repeated_file is not None and not source.files:
        raise UserError(
            f"Expected files of {dataset.name!r}, of which {repeated_file!r} is read twice, got rows of "
            f"{source.name}. Fix: place the files in the data directory."
        )
    if source.kind == "tfds":
        return _open_tfds(source, source_split, data_dir)
    if source.kind == "hub":
        return _open_hub(dataset, source, source_split)
    if source.kind == "function":
        return _open_function(source, source_split)
    assert data_dir is not None  # `choose_source` finds no files without it
    return _open_files(dataset, source, split, storage.path(data_dir), prompt, repeated_file)


def _open_files(
    dataset: Dataset, source: RowSource, split: str, root: epath.Path, prompt: str, repeated_file: str | None
) -> OpenSplit:
    def paths_of(name: str) -> list[epath.Path]:
        return [root / file.replace("{prompt}", prompt) for file in source.files.get(name, ())]

    paths = paths_of(split) + ([root / repeated_file] if repeated_file else [])
    missing = next((path for path in paths if not path.is_file()), None)
    if missing or not paths:
        complete = [name for name in source.files if all(path.is_file() for path in paths_of(name))]
        fix = (
            f"use one of the splits {', '.join(complete)}." if complete else lower_first(find_remedy(dataset))
        )
        place = f"at {str(missing)!r}" if missing else "as a file"
        raise MissingDatasetRowsError(
            f"Expected the {split} split of {dataset.name!r} {place}, got no file. Fix: {fix}"
        )
    origin = " and ".join(map(str, paths))
    rows = read_files(source, paths)
    return OpenSplit(source, origin, len(rows), rows.take)


def _open_function(source: RowSource, split: str) -> OpenSplit:
    function = source.function
    if function is None:
        module, _, name = source.name.partition(":")
        try:
            function = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(
                f"Expected a function that returns rows, as package.module:name, got {source.name!r} "
                f"({error}). Fix: correct the name."
            ) from error
    name = source.name or getattr(function, "__name__", repr(function))
    origin = f"{name}({split!r})"
    try:
        found: Any = function(split)
        rows = found if isinstance(found, FileRows) else list(found)
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise UserError(
            f"Expected the function {name!r} to return rows of {split!r}, got {_reason(error)}. Fix: correct "
            "the function."
        ) from error
    if isinstance(rows, FileRows):
        return OpenSplit(source, origin, len(rows), rows.take)
    if not rows or not all(isinstance(row, Mapping) for row in rows):
        raise UserError(
            f"Expected the function {name!r} to return rows of {split!r}, mappings by column, got none or "
            "other values. Fix: correct the function."
        )
    return OpenSplit(source, origin, len(rows), hold_rows_in_memory(rows).take)


def _open_hub(dataset: Dataset, source: RowSource, split: str) -> OpenSplit:
    has_files = any(other.files or other.manual for other in dataset.sources)
    alternative = f" Or: {find_remedy(dataset)}" if has_files else ""
    try:
        hub = importlib.import_module("datasets")
    except ImportError:
        raise UserError(
            f"Expected the package `datasets` to read {source.name!r} from the Hugging Face hub, got none "
            f"installed. Fix: {install_command('hub')}.{alternative}"
        ) from None
    origin = "/".join(["hub:" + source.name, *([source.config] if source.config else []), split])
    try:
        rows = hub.load_dataset(source.name, source.config, split=split, revision=source.revision)
    except Exception as error:  # whatever its network, files and scripts may raise
        raise MissingDatasetRowsError(
            f"Expected to load {origin!r} from the hub, got {_reason(error)}. Fix: if the hub cannot be "
            f"reached, load it once elsewhere and copy the cache.{alternative}"
        ) from error

    def take(numbers: Sequence[int]) -> Iterable[Mapping[str, Any]]:
        for at in range(0, len(numbers), HUB_BATCH):
            yield from rows.select(numbers[at : at + HUB_BATCH])

    return OpenSplit(source, origin, len(rows), take)


def _open_tfds(source: RowSource, split: str, data_dir: storage.PathLike | None) -> OpenSplit:
    import tensorflow_datasets as tfds

    root = storage.path(data_dir) if data_dir is not None else None
    try:
        directory = find_tfds_directory(source, root)
        if directory is not None:
            builder = tfds.builder_from_directory(directory)
        else:
            builder = tfds.builder(source.name, data_dir=root)
            _require_reachable(builder.url_infos or ())
            builder.download_and_prepare()
        splits = builder.info.splits
    except Exception as error:  # whatever its downloads, parsers and files may raise
        raise MissingDatasetRowsError(
            f"Expected TFDS to prepare {source.name!r}, got {_reason(error)}. Fix: if its servers cannot be "
            "reached, prepare it elsewhere (`tfds build`) and give its data directory."
        ) from error
    base_split = split.partition("[")[0]  # "train[:-300]" is a part of train
    names.resolve(base_split, splits, kind="split", where=f"TFDS's {source.name!r}")
    origin, count = f"tfds:{source.name}/{split}", splits[split].num_examples
    rows = _find_random_access(builder, split)
    if rows is None:
        return OpenSplit(
            source, origin, count, lambda numbers: _take_tfds(builder, split, numbers), scans_from_start=True
        )
    return OpenSplit(source, origin, count, lambda numbers: (rows[number] for number in numbers))


def _require_reachable(urls: Iterable[str]) -> None:
    """Raises if no server's name resolves; TFDS itself would try for more than three minutes.

    One name that does not resolve means nothing: the addresses are those of all of a builder's datasets.
    """
    hosts = sorted({urllib.parse.urlsplit(url).hostname or "" for url in urls} - {""})
    if not urllib.request.getproxies() and hosts and not any(map(_resolves, hosts)):
        raise ConnectionError(f"no server's name resolves: {', '.join(hosts)}")


def _resolves(host: str) -> bool:
    try:
        return bool(socket.getaddrinfo(host, None))
    except OSError:
        return False


def _find_random_access(builder: Any, split: str) -> Any:
    """Returns the rows of a split by number; None if its files can only be read from the front."""
    try:
        return builder.as_data_source(split)
    except NotImplementedError:
        return None


def _take_tfds(builder: Any, split: str, numbers: Sequence[int]) -> Iterable[Mapping[str, Any]]:
    import tensorflow_datasets as tfds

    # One shard after the other, so that a row's number is its position in the files.
    in_order = tfds.ReadConfig(interleave_cycle_length=1)
    dataset = builder.as_dataset(split=split, shuffle_files=False, read_config=in_order)
    if isinstance(numbers, range) and numbers.step == 1:
        return tfds.as_numpy(dataset.skip(numbers.start).take(len(numbers)))
    positions = {number: position for position, number in enumerate(numbers)}
    selected: list[Mapping[str, Any]] = [{}] * len(positions)
    for number, row in enumerate(tfds.as_numpy(dataset.take(max(positions, default=-1) + 1))):
        if number in positions:
            selected[positions[number]] = row
    return selected


def _reason(error: BaseException) -> str:
    first = str(error).strip().partition("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {first:.200}" if first else type(error).__name__
