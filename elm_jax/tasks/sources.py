"""Sources: one split of a dataset, opened wherever its rows are at hand.

There is one interface for them all: `open_split` says how many rows there are and takes those whose numbers
are asked for. Files are read below the data directory, TFDS and the hub through their own libraries, which
are imported here and only when one of their datasets is opened.
"""

import functools
import importlib
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from elm_jax import names, storage
from elm_jax.errors import UserError
from elm_jax.tasks import files
from elm_jax.tasks.datasets import READERS, Dataset, Source


@dataclass(frozen=True)
class Opened:
    """A split whose rows can be taken."""

    source: Source
    origin: str  # how errors and reports call it: a file, a builder, a dataset of the hub
    count: int  # rows
    take: Callable[[Sequence[int]], Sequence[Mapping[str, Any]]]  # numbers from 0 -> rows in that order


def open_split(
    dataset: Dataset,
    split: str,
    data_dir: storage.PathLike | None = None,
    *,
    prompt: str = "",
    again: str | None = None,
) -> Opened:
    """Opens a split at the source that `choose` finds.

    `prompt` stands in the names of files that differ by prompt. The file `again` is read once more after the
    others. Raises `UserError` where nothing is at hand and nothing can be fetched, saying what to do; where
    the split is unknown; and where what is there cannot be read.
    """
    split = names.resolve(split, dataset.splits, kind="split", where=f"dataset {dataset.name!r}")
    source = choose(dataset, data_dir)
    theirs = source.splits.get(split, split)
    if again is not None and not source.files:
        raise UserError(
            f"{again!r} cannot be read twice: the rows of {dataset.name!r} come from {source.name}."
        )
    if source.kind == "tfds":
        return _open_tfds(source, theirs, data_dir)
    if source.kind == "hub":
        return _open_hub(dataset, source, theirs)
    if source.kind == "function":
        return _open_function(source, theirs)
    assert data_dir is not None  # or else `choose` would have found none of the files
    return _open_files(dataset, source, split, storage.path(data_dir), prompt, again)


def choose(dataset: Dataset, data_dir: storage.PathLike | None = None) -> Source:
    """Returns the first source whose rows are at hand; where none is, the first that can be fetched.

    At hand is a dataset with a file of any split below the data directory, one that TFDS has prepared there
    or in its own directory, and a function.
    """
    remedy = _remedy(dataset)
    root = None
    if data_dir is not None:
        root = storage.existing_directory(data_dir, what="A directory of datasets", remedy=remedy)
    for source in dataset.sources:
        if (
            source.kind == "function"
            or prepared_at(source, root)
            or (root and _placed(dataset, source, root))
        ):
            return source
    for source in dataset.sources:
        if source.kind == "hub" or (source.kind == "tfds" and not source.manual):
            return source
    if root is None:
        raise UserError(f"Rows of {dataset.name!r} are wanted, but no data directory was given. {remedy}")
    raise UserError(f"Rows of {dataset.name!r} are wanted in {str(root)!r}, but no file is there. {remedy}")


def _remedy(dataset: Dataset) -> str:
    for source in dataset.sources:
        if source.manual:
            return source.manual.strip()
    for source in dataset.sources:
        if source.files:
            file = next(iter(source.files.values()))[0]
            return f"Place {file!r} in a directory and give it as the data directory."
    return "Give the directory where its files or TFDS's are, or none."


def _placed(dataset: Dataset, source: Source, root: epath.Path) -> bool:
    prompts = list(dataset.prompts)
    return any(
        (root / file.replace("{prompt}", prompt)).is_file()
        for of_split in source.files.values()
        for file in of_split
        for prompt in (prompts if "{prompt}" in file else prompts[:1])
    )


def _open_files(
    dataset: Dataset, source: Source, split: str, root: epath.Path, prompt: str, again: str | None
) -> Opened:
    def places(of: str) -> list[epath.Path]:
        return [root / file.replace("{prompt}", prompt) for file in source.files.get(of, ())]

    wanted = places(split) + ([root / again] if again else [])
    missing = next((place for place in wanted if not place.is_file()), None)
    if missing or not wanted:
        there = [of for of in source.files if all(place.is_file() for place in places(of))]
        have = f"The splits there are: {', '.join(there)}." if there else _remedy(dataset)
        place = f"at {str(missing)!r}" if missing else "as a file"
        raise UserError(
            f"The {split} split of {dataset.name!r} is wanted {place}, but no file is there. {have}"
        )
    origin = " and ".join(map(str, wanted))
    if source.kind == "parquet" and len(wanted) == 1:  # the one kind that need not be read whole
        table = files.open_parquet(wanted[0])
        return Opened(source, origin, table.num_rows, lambda numbers: files.take(table, numbers, wanted[0]))
    found = tuple((place, storage.file_fingerprint(place)) for place in wanted)
    return _in_memory(source, origin, _read(source.kind, source.header, found))


@functools.lru_cache(maxsize=2)
def _read(
    kind: str, header: tuple[str, ...], found: tuple[tuple[epath.Path, str], ...]
) -> Sequence[Mapping[str, Any]]:
    """Returns the rows of files, with fingerprints; every prompt of a dataset asks for the same ones."""
    reader = functools.partial(files.read_csv, header=header) if header else READERS[kind]
    return [row for place, _ in found for row in reader(place)]


def _open_function(source: Source, split: str) -> Opened:
    function = source.function
    if function is None:
        module, _, name = source.name.partition(":")
        try:
            function = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(
                f"A function that gives rows is wanted as package.module:name, but {source.name!r} is none "
                f"({error})."
            ) from error
    name = source.name or function.__name__
    rows: list[Any] = list(function(split))
    if not rows or not all(isinstance(row, Mapping) for row in rows):
        raise UserError(
            f"The function {name!r} should give rows of {split!r}, mappings by column, but did not."
        )
    return _in_memory(source, f"{name}({split!r})", rows)


def _in_memory(source: Source, origin: str, rows: Sequence[Mapping[str, Any]]) -> Opened:
    return Opened(source, origin, len(rows), lambda numbers: [rows[number] for number in numbers])


def _open_hub(dataset: Dataset, source: Source, split: str) -> Opened:
    own = f" Or: {_remedy(dataset)}" if any(other.files or other.manual for other in dataset.sources) else ""
    try:
        hub = importlib.import_module("datasets")
    except ImportError:
        raise UserError(
            f"{source.name!r} is read from the Hugging Face hub with the package `datasets`, which is not "
            f"installed. Install the extra: pip install 'elm_jax[hub]'.{own}"
        ) from None
    origin = "/".join(["hub:" + source.name, *([source.config] if source.config else []), split])
    try:
        rows = hub.load_dataset(source.name, source.config, split=split, revision=source.revision)
    except Exception as error:  # whatever its network, files and scripts may raise
        raise UserError(
            f"{origin!r} could not be loaded from the hub ({_reason(error)}). Where the hub is out of reach, "
            f"load it once elsewhere and bring its cache along.{own}"
        ) from error
    return Opened(source, origin, len(rows), lambda numbers: list(rows.select(numbers)))


def prepared_at(source: Source, root: epath.Path | None) -> epath.Path | None:
    """Returns where TFDS has prepared a dataset, if it has."""
    if source.kind != "tfds":
        return None
    own = os.environ.get("TFDS_DATA_DIR", os.path.join("~", "tensorflow_datasets"))
    for directory in [*([root] if root else []), storage.path(own)]:
        place = directory / source.name.replace(":", "/")
        if (place / "dataset_info.json").exists():
            return place
    return None


def _open_tfds(source: Source, split: str, data_dir: storage.PathLike | None) -> Opened:
    import tensorflow_datasets as tfds

    root = storage.path(data_dir) if data_dir is not None else None
    try:
        place = prepared_at(source, root)
        if place is not None:
            builder = tfds.builder_from_directory(place)
        else:
            builder = tfds.builder(source.name, data_dir=root)
            _refuse_unreachable(builder.url_infos or ())
            builder.download_and_prepare()
        splits = builder.info.splits
    except Exception as error:  # whatever its downloads, parsers and files may raise
        raise UserError(
            f"TFDS could not make {source.name!r} ready ({_reason(error)}). Where its servers are out of "
            "reach, prepare it elsewhere (`tfds build`) and give its data directory."
        ) from error
    whole = split.partition("[")[0]  # "train[:-300]" is a part of train
    names.resolve(whole, splits, kind="split", where=f"TFDS's {source.name!r}")
    return Opened(
        source,
        f"tfds:{source.name}/{split}",
        splits[split].num_examples,
        lambda numbers: _take_tfds(builder, split, numbers),
    )


def _refuse_unreachable(urls: Iterable[str]) -> None:
    """Raises if no server's name is known here; TFDS itself would ask for them for more than three minutes.

    One that is not known says nothing: the addresses are those of all of a builder's datasets.
    """
    hosts = sorted({urllib.parse.urlsplit(url).hostname or "" for url in urls} - {""})
    if not urllib.request.getproxies() and hosts and not any(map(_resolves, hosts)):
        raise ConnectionError(f"no server's name resolves: {', '.join(hosts)}")


def _resolves(host: str) -> bool:
    try:
        return bool(socket.getaddrinfo(host, None))
    except OSError:
        return False


def _take_tfds(builder: Any, split: str, numbers: Sequence[int]) -> list[Mapping[str, Any]]:
    import tensorflow_datasets as tfds

    try:
        rows = builder.as_data_source(split)
        return [rows[number] for number in numbers]
    except NotImplementedError:  # files of a format that is read from the front
        pass
    places = {number: place for place, number in enumerate(numbers)}
    taken: list[Mapping[str, Any]] = [{}] * len(places)
    # One shard after the other, so that a row's number is its place in the files.
    in_order = tfds.ReadConfig(interleave_cycle_length=1)
    dataset = builder.as_dataset(split=split, shuffle_files=False, read_config=in_order)
    for number, row in enumerate(tfds.as_numpy(dataset.take(max(places, default=-1) + 1))):
        if number in places:
            taken[places[number]] = row
    return taken


def _reason(error: BaseException) -> str:
    first = str(error).strip().partition("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {first:.200}" if first else type(error).__name__
