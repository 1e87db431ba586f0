"""Source choice: which of a dataset's sources is read, and where what it has here lies."""

import os

from etils import epath

from elm_jax import storage
from elm_jax.errors import MissingDatasetRowsError
from elm_jax.names import lower_first
from elm_jax.tasks.datasets import Dataset, RowSource


def choose_source(dataset: Dataset, data_dir: storage.PathLike | None = None) -> RowSource:
    """Returns the first source whose rows are available locally, or else the first that can be downloaded.

    Available locally are files (of any split) below the data directory, what TFDS has prepared there or in
    its own directory, and functions.

    Raises:
        UserError: If there is none.
    """
    remedy = find_remedy(dataset)
    root = None
    if data_dir is not None:
        root = storage.existing_directory(data_dir, what="A directory of datasets", remedy=remedy)
    for source in dataset.sources:
        if (
            source.kind == "function"
            or find_tfds_directory(source, root)
            or (root and _has_files(dataset, source, root))
        ):
            return source
    for source in dataset.sources:
        if source.kind == "hub" or (source.kind == "tfds" and not source.manual):
            return source
    if root is None:
        raise MissingDatasetRowsError(
            f"Expected a data directory with the rows of {dataset.name!r}, got none. Fix: "
            f"{lower_first(remedy)}"
        )
    raise MissingDatasetRowsError(
        f"Expected rows of {dataset.name!r} in {str(root)!r}, got no file. Fix: {lower_first(remedy)}"
    )


def find_hub_caches(source: RowSource) -> tuple[epath.Path, epath.Path]:
    """Returns where the hub's library keeps a dataset: the files that it downloads, and the rows of them."""
    home = os.environ.get("HF_HOME", os.path.join("~", ".cache", "huggingface"))
    of_files = storage.path(os.environ.get("HF_HUB_CACHE", os.path.join(home, "hub")))
    of_rows = storage.path(os.environ.get("HF_DATASETS_CACHE", os.path.join(home, "datasets")))
    rows = of_rows / source.name.replace("/", "___")
    return of_files / f"datasets--{source.name.replace('/', '--')}", (
        rows / source.config if source.config else rows
    )


def find_tfds_directory(source: RowSource, root: epath.Path | None) -> epath.Path | None:
    """Returns the directory of a dataset that TFDS has prepared; None if there is none."""
    if source.kind != "tfds":
        return None
    default = os.environ.get("TFDS_DATA_DIR", os.path.join("~", "tensorflow_datasets"))
    for directory in [*([root] if root else []), storage.path(default)]:
        path = directory / source.name.replace(":", "/")
        if (path / "dataset_info.json").exists():
            return path
    return None


def find_remedy(dataset: Dataset) -> str:
    """Returns how to make the rows of a dataset available."""
    for source in dataset.sources:
        if source.manual:
            return source.manual.strip()
    for source in dataset.sources:
        if source.files:
            file = next(iter(source.files.values()))[0]
            return f"Place {file!r} in a directory and give it as the data directory."
    return "Give the directory where its files or TFDS's are, or none."


def _has_files(dataset: Dataset, source: RowSource, root: epath.Path) -> bool:
    prompts = list(dataset.prompts)
    return any(
        (root / file.replace("{prompt}", prompt)).is_file()
        for of_split in source.files.values()
        for file in of_split
        for prompt in (prompts if "{prompt}" in file else prompts[:1])
    )
