"""User sources: where the rows of a user's datasets come from, as files that name them say it.

Beside files of JSON lines, CSV and Parquet these are directories that `save_to_disk` of the package datasets
wrote, and datasets of the Hugging Face hub. Paths are below the directory of the file that names them.
"""

import dataclasses
import functools
import glob
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from elm_jax import hub, storage
from elm_jax.errors import UserError
from elm_jax.tasks import split_files
from elm_jax.tasks.datasets import Dataset, RowSource
from elm_jax.tasks.file_rows import FileRows
from elm_jax.tasks.unpacked_files import UTF_8

FILE_KINDS = ("jsonl", "csv", "parquet")
SAVED, HUB = "disk", "hf"
"""Fields of a dataset: a directory that `save_to_disk` wrote, and an address on the hub."""
FILE_OPTIONS = ("header", "delimiter", "encoding")

RowFunction = Callable[[str], Iterable[Mapping[str, Any]]]
"""Takes the name of a split and returns its rows."""


def take_sources(entry: Mapping[str, Any], directory: str, where: str) -> dict[str, Any]:
    """Returns a dataset's fields with `sources` and `splits` in the place of the fields that name rows.

    Args:
        entry: The fields, as a file or `define_task` has them.
        directory: Directory that paths are relative to.
        where: The dataset, for errors.

    Raises:
        UserError: If no rows are named, or if a field has another form.
    """
    fields = {"sources": [], **entry}
    made: list[Any] = list(fields["sources"])
    options = {name: fields.pop(name) for name in FILE_OPTIONS if name in fields}
    delimiter = options.get("delimiter", ",")
    if not isinstance(delimiter, str) or len(delimiter) != 1:
        raise UserError(
            f"{where}: expected a single character as `delimiter`, got {delimiter!r}. Fix: write one, as "
            '";" or "\\t", in double quotes.'
        )
    if not isinstance(options.get("encoding", UTF_8), str):
        raise UserError(
            f"{where}: expected a name as `encoding`, got {options['encoding']!r}. Fix: write one, as "
            "latin-1."
        )
    for kind in (*FILE_KINDS, SAVED):
        given = fields.pop(kind, None)
        if given is not None:
            by_split = _list_saved(given, directory) if kind == SAVED else _by_split(given)
            made.append({"arrow" if kind == SAVED else kind: by_split, **options})
    if HUB in fields:
        theirs = fields.pop("splits", None) or {"train": "train"}
        made.append(_hub_source(fields.pop(HUB), theirs, directory, where))
        fields["splits"] = dict.fromkeys(theirs)
    named = [
        source.get(kind) for source in made for kind in (*FILE_KINDS, "arrow") if isinstance(source, dict)
    ]
    splits = dict.fromkeys(split for each in named if isinstance(each, Mapping) for split in each)
    fields = {**fields, "sources": made}
    fields.setdefault("splits", splits)
    if not fields["splits"]:
        raise UserError(
            f"{where}: expected files of rows, got none. Fix: add `jsonl: {{train: rows.jsonl}}`."
        )
    return fields


def resolve_sources(
    dataset: Dataset, directory: str, rows: RowFunction | None, number_columns: Sequence[str]
) -> Dataset:
    """Returns a dataset whose files are below the directory of its definition, not a data directory.

    Args:
        dataset: The dataset.
        directory: Directory of its definition.
        rows: A function that returns its rows.
        number_columns: Columns that its templates use as numbers, which are refused if only some values are.
    """
    found = []
    for source in dataset.sources:
        if source.files:
            files = {
                split: tuple(path for name in names for path in _expand(_join(directory, name)))
                for split, names in source.files.items()
            }
            source = dataclasses.replace(
                source, files=files
            )  # as they are looked for where rows are identified
            read = functools.partial(_read_split, source, tuple(number_columns))
            if not all(files.values()):
                raise UserError(
                    f"Expected a file of rows for every split of {dataset.name!r}, got none for some. Fix: "
                    "name one, or leave the split out."
                )
            name = os.path.basename(next(iter(files.values()))[0])
            source = dataclasses.replace(source, kind="function", name=name, function=read)
        elif source.kind == "hub" and os.path.isdir(_join(directory, source.name)):
            source = dataclasses.replace(source, name=_join(directory, source.name))
        found.append(source)
    if rows is not None:
        found.append(RowSource("function", function=rows))
    return dataclasses.replace(dataset, sources=tuple(found))


def _read_split(source: RowSource, number_columns: Sequence[str], split: str) -> FileRows:
    if split not in source.files:
        known = ", ".join(source.files)
        raise UserError(f"Expected a split among {known}, got {split!r}. Fix: name one of these.")
    return split_files.read_files(source, source.files[split], number_columns)


def _by_split(given: Any) -> Any:
    return given if isinstance(given, Mapping) else {"train": given}


def _expand(path: str) -> list[str]:
    """Returns the files that a name with `*`, `?` or `[…]` stands for, in the order of their names."""
    if "://" in path or os.path.exists(path) or not glob.has_magic(path):
        return [path]
    return sorted(glob.glob(path, recursive=True)) or [path]


def _join(directory: str, name: str) -> str:
    """Returns a path below a directory, unless it is absolute or an address of a bucket."""
    return name if "://" in name else os.path.join(directory, os.path.expanduser(name))


def _list_saved(given: Any, directory: str) -> dict[str, list[str]]:
    """Returns the files of directories that `save_to_disk` wrote, by split."""
    if isinstance(given, str):
        index = _read_json(os.path.join(_join(directory, given), "dataset_dict.json"))
        given = {split: os.path.join(given, split) for split in index.get("splits", [])} or {"train": given}
    found = {}
    for split, folder in given.items():
        state = _read_json(os.path.join(_join(directory, folder), "state.json"))
        names = [file["filename"] for file in state.get("_data_files", [])]
        found[split] = [os.path.join(folder, name) for name in names] or [folder]
    return found


def _read_json(file: str) -> dict[str, Any]:
    """Returns the object in a JSON file; an empty one if there is none, so that reading its rows fails."""
    try:
        found = storage.read_json_value(file, what="A dataset's description")
    except UserError:
        return {}
    return found if isinstance(found, dict) else {}


def _hub_source(address: Any, splits: Any, directory: str, where: str) -> dict[str, Any]:
    """Returns the source of a dataset of the hub, or of a directory that is laid out as one."""
    if not isinstance(address, str) or not isinstance(splits, Mapping):
        raise UserError(
            f"{where}: expected `{HUB}` as {hub.HUB_PREFIX}owner/name@revision, and `splits` as names with "
            f"the hub's splits or slices of them, got {address!r} and {splits!r}. Fix: correct them."
        )
    is_local = os.path.isdir(_join(directory, address))
    name, revision = (address, None) if is_local else hub.parse_address(address)
    slices = {ours: theirs for ours, theirs in splits.items() if theirs is not None}
    return {"hub": name, "revision": revision, "splits": slices}
