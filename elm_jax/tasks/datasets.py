"""Datasets: the catalogue's record of each dataset, and how its experts are trained.

The catalogue is data, one YAML file per group (`catalogue/*.yaml`); `catalogue/train.yaml` explains the
fields.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elm_jax import names, storage
from elm_jax.errors import UserError
from elm_jax.prompting.reader import read_yaml
from elm_jax.tasks import columns, files, formats
from elm_jax.tasks.unpacked_files import UTF_8

CATALOGUE = Path(__file__).parent / "catalogue"
READERS: Mapping[str, files.Reader] = {**files.READERS, **formats.READERS}
"""Readers of files by their names in the catalogue."""


@dataclass(frozen=True)
class RowSource:
    """One place that a dataset's rows come from.

    Attributes:
        kind: "tfds", "hub", "function", or how files are read: one of `READERS`.
        name: Name of the builder, of the hub's dataset, or of the function.
        files: Split -> files below the data directory.
        function: Takes a split and returns its rows.
        config: Configuration of the builder or of the hub's dataset.
        revision: Revision of the hub's dataset.
        header: Columns of CSV files that have no header.
        delimiter: What separates values of CSV; none is a comma, or a tab in files that end with .tsv.
        encoding: Encoding of files of JSON lines or CSV.
        adapter: One of `columns.ROW_CONVERTERS`.
        splits: Our name of a split -> the source's.
        lacks: Columns that the source does not have.
        manual: What to do first if the rows cannot be downloaded automatically.
    """

    kind: str
    name: str = ""
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    function: Callable[[str], Iterable[Mapping[str, Any]]] | None = None
    config: str | None = None
    revision: str | None = None
    header: tuple[str, ...] = ()
    delimiter: str = ""
    encoding: str = UTF_8
    adapter: str = "unchanged"
    splits: Mapping[str, str] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()
    manual: str = ""


@dataclass(frozen=True)
class Training:
    """How an expert is trained, and on how much."""

    epochs: int
    rate: float  # learning rate at the start
    batch: int  # rows a step
    source_length: int  # tokens
    target_length: int
    rows: int  # the most that are taken of the split, for each prompt


@dataclass(frozen=True)
class Dataset:
    """One dataset of the catalogue.

    Attributes:
        name: Our name of the dataset.
        group: The group that its tasks are in.
        family: The paper's category.
        split: The split that training reads, or evaluation if nothing is trained.
        splits: Split -> number of rows; None if that is not known beforehand.
        columns: Columns of a row after its adapter; none are not checked.
        sources: Where its rows come from, the preferred one first.
        prompts: Prompt -> metric.
        evaluate: The split that evaluation reads, if training reads another.
        templates: Folder of PromptSource's templates.
        template: `jinja` and `answer_choices` of one template in place of these.
        inline: Prompt -> `jinja` and `answer_choices` of a template of its own.
        config: Configuration of the hub's dataset.
        aliases: Other names of the dataset.
        unranked: Prompts whose choices are words that they write with, and no candidates to rank.
        label: Column of the right answer; a row without one is an error.
        training: How the expert of a prompt is trained.
        exceptions: Prompt -> how its expert is trained, if differently.
        dataset_expert: How one expert for all prompts is trained.
        experts: Prompts that have an expert of their own.
        faithful: Switch of `tasks.original` -> its settings for this dataset.
        file: File that defines the dataset, if a user's does.
        directory: Directory that a user's definition is relative to.
    """

    name: str
    group: str
    family: str
    split: str
    splits: Mapping[str, int | None]
    columns: tuple[str, ...]
    sources: tuple[RowSource, ...]
    prompts: Mapping[str, str]
    evaluate: str | None = None
    templates: str | None = None
    template: Mapping[str, str] | None = None
    inline: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    config: str | None = None
    aliases: tuple[str, ...] = ()
    unranked: tuple[str, ...] = ()
    label: str | None = None
    training: Training | None = None
    exceptions: Mapping[str, Training] = field(default_factory=dict)
    dataset_expert: Training | None = None
    experts: tuple[str, ...] = ()
    faithful: Mapping[str, Any] = field(default_factory=dict)
    file: str | None = None
    directory: str | None = None


@functools.cache
def catalogue() -> Mapping[str, Dataset]:
    """Returns the datasets that come with elm_jax by name; the files are part of the package."""
    found: dict[str, Dataset] = {}
    for file in sorted(CATALOGUE.glob("*.yaml")):
        found |= read_catalogue_file(file)
    return found


# A registry, like SeqIO's: an expert's id has to lead to its task wherever in the process it is used.
_user_datasets: dict[str, Dataset] = {}


def all_datasets() -> Mapping[str, Dataset]:
    """Returns all datasets by name: the catalogue's and the user's."""
    return {**catalogue(), **_user_datasets}


def add_user_datasets(datasets: Mapping[str, Dataset]) -> None:
    """Adds a user's datasets to this process; a dataset of the same name is replaced.

    Raises:
        UserError: If the catalogue has a dataset of the name.
    """
    clash = next((name for name in datasets if name in catalogue()), None)
    if clash is not None:
        raise UserError(f"Expected a new dataset, got {clash!r} of the catalogue. Fix: rename yours.")
    _user_datasets.update(datasets)


def user_datasets() -> Mapping[str, Dataset]:
    """Returns the user's datasets by name."""
    return dict(_user_datasets)


def read_catalogue_file(file: storage.PathLike) -> dict[str, Dataset]:
    """Reads the datasets of one YAML file; errors name the file and the dataset."""
    content = storage.read_content(file, what="A catalogue", most=storage.MOST_TEXT)
    return parse_datasets(read_yaml(str(file), content), str(file))


def parse_datasets(tree: Any, file: str) -> dict[str, Dataset]:
    """Returns the datasets of a YAML file's content; `file` names it in errors."""
    if not (isinstance(tree, dict) and isinstance(tree.get("datasets"), dict) and "group" in tree):
        raise UserError(
            f"Expected {file!r} to hold a `group` and a mapping `datasets`, got others. Fix: add both."
        )
    found = {}
    for name, entry in tree["datasets"].items():
        try:
            found[name] = _parse_dataset(name, tree["group"], tree.get("defaults") or {}, entry, file)
        except (AttributeError, TypeError, ValueError) as error:
            raise UserError(
                f"{file!r}, dataset {name!r}: expected fields as in the catalogue, got {error}. Fix: correct "
                "the field."
            ) from error
    return found


def training(dataset: Dataset, prompt: str) -> Training:
    """Returns how the expert of one prompt is trained."""
    found = dataset.exceptions.get(prompt, dataset.training)
    if found is None:
        raise UserError(
            f"Expected a dataset with a budget of training, got {dataset.name!r}, which has none. Fix: give "
            "a budget."
        )
    return found


def _parse_dataset(
    name: str, group: str, defaults: Mapping[str, Any], entry: Mapping[str, Any], file: str
) -> Dataset:
    where = f"{file!r}, dataset {name!r}"
    fields = {**defaults, **entry}
    metric = fields.pop("metric", "accuracy")
    prompts = fields.get("prompts") or {}
    default_training = defaults.get("training")
    training_fields = entry.get("training")
    if default_training:
        training_fields = {**default_training, **(training_fields or {})}
    exceptions = {
        prompt: _build_record(Training, {**(training_fields or {}), **other}, where)
        for prompt, other in (fields.get("exceptions") or {}).items()
    }
    expert = fields.get("dataset_expert")
    if expert:
        expert = {**(training_fields or {}), **expert}
    if not isinstance(prompts, Mapping):
        prompts = dict.fromkeys(_as_texts(prompts), metric)
    fields |= {
        "name": name,
        "group": group,
        "prompts": dict(prompts),
        "sources": tuple(
            _parse_source(source, fields.get("config"), where) for source in fields.get("sources") or ()
        ),
        "columns": _as_texts(fields.get("columns")),
        "aliases": _as_texts(fields.get("aliases")),
        "unranked": _as_texts(fields.get("unranked")),
        "training": _build_record(Training, training_fields, where) if training_fields else None,
        "exceptions": exceptions,
        "dataset_expert": _build_record(Training, expert, where) if expert else None,
    }
    if "splits" in fields:
        fields["splits"] = dict(fields["splits"])
    if "template" not in fields and "inline" not in fields:
        fields.setdefault("templates", name)
    fields["experts"] = _as_texts(fields.get("experts", list(fields["prompts"]) if training_fields else None))
    return _build_record(Dataset, fields, where)


def _parse_source(entry: Mapping[str, Any], config: str | None, where: str) -> RowSource:
    kinds = [*READERS, "tfds", "hub", "function"]
    kind = next((key for key in entry if key in kinds), None)
    if kind is None:
        raise UserError(
            f"{where}: expected a source of a kind among {', '.join(kinds)}, got {dict(entry)!r}. Fix: name "
            "one."
        )
    fields = {"kind": kind, **{key: value for key, value in entry.items() if key != kind}}
    if kind in READERS:
        fields["files"] = {split: _as_texts(paths) for split, paths in entry[kind].items()}
    else:
        fields["name"] = entry[kind]
    if kind == "hub":
        fields.setdefault("config", config)
    for name in ("header", "lacks"):
        fields[name] = _as_texts(fields.get(name))
    source = _build_record(RowSource, fields, where)
    names.resolve(source.adapter, columns.ROW_CONVERTERS, kind="adapter", where=where)
    return source


def _as_texts(value: Any) -> tuple[str, ...]:
    """Returns a list of texts from one that may be missing or a single text."""
    texts: tuple[Any, ...] = (value,) if isinstance(value, str) else tuple(value or ())
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{value!r} in the place of texts")
    return texts


def _build_record(kind: type, fields: Mapping[str, Any], where: str) -> Any:
    known = dataclasses.fields(kind)
    for name in fields:
        names.resolve(name, [each.name for each in known], kind="field", where=where)
    required = [each.name for each in known if each.default is each.default_factory is dataclasses.MISSING]
    missing = [name for name in required if name not in fields]
    if missing:
        raise UserError(
            f"{where}: expected {', '.join(missing)} of a {kind.__name__.lower()}, got none. Fix: add the "
            "fields."
        )
    return kind(**fields)
