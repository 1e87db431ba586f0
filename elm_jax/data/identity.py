"""Identity: what stands for the rows of a split without any of them being read.

Prepared rows are kept for as long as their identity is the same, so it must be cheap to tell: files by their
bytes, TFDS's datasets by their version and the file that describes them, the hub's by name and revision, a
function by the file that its code is in. What changes unseen by these (a dataset of the hub without a
revision, what a function reads) is not noticed.
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
from elm_jax.tasks.data_source import Source, split_of
from elm_jax.tasks.datasets import Dataset, datasets, training
from elm_jax.tasks.specs import is_embedded


def of_split(spec: TaskSpec, data: Source) -> Mapping[str, Any]:
    """Returns what the rows depend on that `raw_rows.load_rows` gives for the same arguments, but its seed.

    Raises:
        UserError: If no source of the dataset is available.
    """
    split, rows, data_dir = split_of(spec, data), data.limit, data.data_dir
    if is_embedded(spec):
        made_by = [_bytes(epath.Path(module.__file__ or "")) for module in (mini, mini_words)]
        return {"dataset": spec.dataset, "split": split, "rows": rows, "code": made_by}
    dataset = datasets()[spec.dataset]
    source = sources.choose(dataset, data_dir)
    if rows is None and dataset.training and split == dataset.split:
        rows = training(dataset, spec.prompt).rows
    return {
        "dataset": dataset.name,
        "split": source.splits.get(split, split),
        "rows": rows,
        "kind": source.kind,
        "name": [source.name, source.config, source.revision],
        "columns": [source.adapter, dataset.label, *dataset.columns, *source.header],
        "content": _content(dataset, source, split, data_dir, spec.prompt),
    }


def _content(
    dataset: Dataset, source: catalogue.Source, split: str, data_dir: storage.PathLike | None, prompt: str
) -> Any:
    root = storage.path(data_dir if data_dir is not None else ".")
    if source.files:
        again = [file for file in dataset.faithful.values() if isinstance(file, str)]
        files = [file.replace("{prompt}", prompt) for file in (*source.files.get(split, ()), *again)]
        return {file: _bytes(root / file) for file in files}
    if source.kind == "tfds":
        place = sources.prepared_at(source, root if data_dir is not None else None)
        return place and [_bytes(place / name) for name in ("dataset_info.json", "features.json")]
    if source.kind == "function":
        return _code(source)
    return None


def _code(source: catalogue.Source) -> str | None:
    """Returns the digest of the file that a function's code is in; None for code that is in no file."""
    if source.function is not None:
        try:
            file = inspect.getsourcefile(inspect.unwrap(source.function))
        except TypeError:  # built in, or an object that can be called
            return None
    else:
        spec = importlib.util.find_spec(source.name.partition(":")[0])
        file = spec.origin if spec else None
    return _bytes(epath.Path(file)) if file and Path(file).is_file() else None


def _bytes(file: epath.Path) -> str | None:
    """Returns the digest of a file's bytes; None where it is not there."""
    if not file.is_file():
        return None
    if "://" in os.fspath(file):
        told = file.stat()
        return f"{told.length} bytes of {told.mtime}"  # a bucket's files are too far away to be read for this
    there = os.stat(file)
    return _digest(os.fspath(file), there.st_size, there.st_mtime_ns)


# The prompts of a dataset share its files.
@functools.lru_cache(maxsize=1024)
def _digest(file: str, size: int, changed: int) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:16]
