"""Identity: what the rows of a split depend on, told without reading any of them.

Prepared rows are current as long as this is the same, so it must be cheap: files by their bytes, TFDS's
datasets by their version and the file that describes them, the hub's by name and revision, a function by the
file of its code. Other changes (a hub dataset without a revision, what a function reads) are not noticed.
"""

import functools
import hashlib
import importlib.util
import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from elm_jax import storage
from elm_jax.records import TaskSpec
from elm_jax.tasks import datasets as catalogue
from elm_jax.tasks import mini, mini_words, sources
from elm_jax.tasks.data_source import Source, get_split
from elm_jax.tasks.datasets import Dataset, all_datasets, training
from elm_jax.tasks.specs import is_embedded


def identify_rows(spec: TaskSpec, source: Source) -> Mapping[str, Any]:
    """Returns everything that the rows depend on which `raw_rows.load_rows` returns, except the seed.

    Raises:
        UserError: If no source of the dataset is available.
    """
    split, limit, data_dir = get_split(spec, source), source.limit, source.data_dir
    if is_embedded(spec):
        code = [_digest_file(epath.Path(module.__file__ or "")) for module in (mini, mini_words)]
        return {"dataset": spec.dataset, "split": split, "rows": limit, "code": code}
    dataset = all_datasets()[spec.dataset]
    row_source = sources.choose_source(dataset, data_dir)
    if limit is None and dataset.training and split == dataset.split:
        limit = training(dataset, spec.prompt).rows
    return {
        "dataset": dataset.name,
        "split": row_source.splits.get(split, split),
        "rows": limit,
        "kind": row_source.kind,
        "name": [row_source.name, row_source.config, row_source.revision],
        "columns": [row_source.adapter, dataset.label, *dataset.columns, *row_source.header],
        **_identify_format(row_source),
        "content": _identify_content(dataset, row_source, split, data_dir, spec.prompt),
    }


def _identify_format(source: catalogue.RowSource) -> dict[str, str]:
    """Returns how files are read if it is not the usual way, so that those of first versions are current."""
    usual = catalogue.RowSource(source.kind)
    given = {name: getattr(source, name) for name in ("delimiter", "encoding")}
    return {name: value for name, value in given.items() if value != getattr(usual, name)}


def _identify_content(
    dataset: Dataset, source: catalogue.RowSource, split: str, data_dir: storage.PathLike | None, prompt: str
) -> Any:
    root = storage.path(data_dir if data_dir is not None else ".")
    if source.files:
        repeated = [file for file in dataset.faithful.values() if isinstance(file, str)]
        files = [file.replace("{prompt}", prompt) for file in (*source.files.get(split, ()), *repeated)]
        return {file: _digest_file(root / file) for file in files}
    if source.kind == "tfds":
        directory = sources.find_tfds_directory(source, root if data_dir is not None else None)
        return directory and [
            _digest_file(directory / name) for name in ("dataset_info.json", "features.json")
        ]
    if source.kind == "function":
        return _digest_code(source)
    return None


def _digest_code(source: catalogue.RowSource) -> str | None:
    """Returns the digest of the file of a function's code; None if it is in no file."""
    if source.function is not None:
        try:
            file = inspect.getsourcefile(inspect.unwrap(source.function))
        except TypeError:  # built in, or an object that can be called
            return None
    else:
        spec = importlib.util.find_spec(source.name.partition(":")[0])
        file = spec.origin if spec else None
    return _digest_file(epath.Path(file)) if file and Path(file).is_file() else None


def _digest_file(file: epath.Path) -> str | None:
    """Returns the digest of a file's bytes; None if there is no file."""
    if not file.is_file():
        return None
    if "://" in os.fspath(file):
        stat = file.stat()
        return f"{stat.length} bytes of {stat.mtime}"  # reading a bucket's file would take too long
    stat = os.stat(file)
    return _digest_version(os.fspath(file), stat.st_size, stat.st_mtime_ns)


# The prompts of a dataset share its files. Only digests are kept.
@functools.lru_cache(maxsize=1024)
def _digest_version(file: str, size: int, mtime: int) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:16]
