"""Datasets: what the catalogue says of each, and how its experts are trained.

The catalogue is data, a YAML file a group (`catalogue/*.yaml`); `catalogue/train.yaml` explains the fields.
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

CATALOGUE = Path(__file__).parent / "catalogue"
READERS: Mapping[str, files.Reader] = {**files.READERS, **formats.READERS}
"""Readers of files by the name that the catalogue gives them."""


@dataclass(frozen=True)
class Source:
    """One place that a dataset's rows come from."""

    kind: str  # "tfds", "hub", "function", or how files are read: one of READERS
    name: str = ""  # of the builder, of the hub's dataset, or of the function
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # split -> below the data directory
    function: Callable[[str], Iterable[Mapping[str, Any]]] | None = None  # takes the split
    config: str | None = None
    revision: str | None = None
    header: tuple[str, ...] = ()  # of CSV files that have none
    adapter: str = "unchanged"  # one of columns.ADAPTERS
    splits: Mapping[str, str] = field(default_factory=dict)  # our name of a split -> its own
    lacks: tuple[str, ...] = ()  # columns that it cannot give
    manual: str = ""  # what to do first where it cannot be fetched by itself


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
    """One dataset of the catalogue."""

    name: str
    group: str
    family: str
    split: str  # what training reads, or evaluation where nothing is trained
    splits: Mapping[str, int | None]  # rows, None where that is not known beforehand
    columns: tuple[str, ...]  # of a row after its adapter
    sources: tuple[Source, ...]
    prompts: Mapping[str, str]  # prompt -> metric
    evaluate: str | None = None  # the split that evaluation reads, where training reads another
    templates: str | None = None  # folder of PromptSource's templates
    template: Mapping[str, str] | None = None  # jinja and answer_choices of one template instead
    inline: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # prompt -> the same, of its own
    config: str | None = None
    aliases: tuple[str, ...] = ()
    label: str | None = None
    training: Training | None = None
    exceptions: Mapping[str, Training] = field(default_factory=dict)  # prompt -> how its expert was trained
    dataset_expert: Training | None = None
    experts: tuple[str, ...] = ()  # prompts with an expert of their own
    faithful: Mapping[str, Any] = field(default_factory=dict)  # switch -> what it does here


@functools.cache
def catalogue() -> Mapping[str, Dataset]:
    """Returns the datasets that come with elm_jax, by name."""
    found: dict[str, Dataset] = {}
    for file in sorted(CATALOGUE.glob("*.yaml")):
        found |= read(file)
    return found


# An expert's id must find its task again wherever it turns up, so a process knows what was defined in it, as
# SeqIO's registry does.
_added: dict[str, Dataset] = {}


def datasets() -> Mapping[str, Dataset]:
    """Returns all datasets by name: the catalogue's, and those that were added."""
    return {**catalogue(), **_added}


def add(found: Mapping[str, Dataset]) -> None:
    """Adds datasets of one's own to this process; one that was added before is replaced.

    Raises `UserError` for a name that the catalogue has.
    """
    taken = next((name for name in found if name in catalogue()), None)
    if taken is not None:
        raise UserError(f"{taken!r} is a dataset of the catalogue already. Call your own otherwise.")
    _added.update(found)


def added() -> Mapping[str, Dataset]:
    """Returns the datasets that were added."""
    return dict(_added)


def read(file: storage.PathLike) -> dict[str, Dataset]:
    """Reads the datasets of one YAML file; whatever is wrong with it is a `UserError` that says where."""
    try:
        content = storage.path(file).read_bytes()
    except OSError as error:
        raise UserError(f"A catalogue is wanted at {str(file)!r}, but {error.strerror or error}.") from error
    return parse(read_yaml(str(file), content), str(file))


def parse(tree: Any, file: str) -> dict[str, Dataset]:
    """Returns the datasets that the content of a YAML file says; `file` is for errors."""
    if not (isinstance(tree, dict) and isinstance(tree.get("datasets"), dict) and "group" in tree):
        raise UserError(f"{file!r} should hold a `group` and a mapping named `datasets`.")
    found = {}
    for name, entry in tree["datasets"].items():
        try:
            found[name] = _dataset(name, tree["group"], tree.get("defaults") or {}, entry, file)
        except (AttributeError, TypeError, ValueError) as error:
            raise UserError(f"{file!r}, dataset {name!r}: a field has a wrong form ({error}).") from error
    return found


def training(dataset: Dataset, prompt: str) -> Training:
    """Returns how the expert of one prompt is trained."""
    found = dataset.exceptions.get(prompt, dataset.training)
    if found is None:
        raise UserError(f"A budget for {dataset.name!r} is wanted, but its dataset has no `training`.")
    return found


def _dataset(
    name: str, group: str, defaults: Mapping[str, Any], entry: Mapping[str, Any], file: str
) -> Dataset:
    where = f"{file!r}, dataset {name!r}"
    fields = {**defaults, **entry}
    metric = fields.pop("metric", "accuracy")
    prompts = fields.get("prompts") or {}
    base = defaults.get("training")
    trained = {**base, **(entry.get("training") or {})} if base else entry.get("training")
    exceptions = {
        prompt: _record(Training, {**(trained or {}), **other}, where)
        for prompt, other in (fields.get("exceptions") or {}).items()
    }
    expert = fields.get("dataset_expert")
    fields |= {
        "name": name,
        "group": group,
        "prompts": dict(prompts) if isinstance(prompts, Mapping) else dict.fromkeys(_texts(prompts), metric),
        "sources": tuple(
            _source(source, fields.get("config"), where) for source in fields.get("sources") or ()
        ),
        "columns": _texts(fields.get("columns")),
        "aliases": _texts(fields.get("aliases")),
        "training": _record(Training, trained, where) if trained else None,
        "exceptions": exceptions,
        "dataset_expert": _record(Training, {**(trained or {}), **expert}, where) if expert else None,
    }
    if "splits" in fields:
        fields["splits"] = dict(fields["splits"])
    if "template" not in fields and "inline" not in fields:
        fields.setdefault("templates", name)
    fields["experts"] = _texts(fields.get("experts", list(fields["prompts"]) if trained else None))
    return _record(Dataset, fields, where)


def _source(entry: Mapping[str, Any], config: str | None, where: str) -> Source:
    kinds = [*READERS, "tfds", "hub", "function"]
    kind = next((key for key in entry if key in kinds), None)
    if kind is None:
        raise UserError(f"{where}: a source should be one of {', '.join(kinds)}, but {dict(entry)!r} came.")
    fields = {"kind": kind, **{key: value for key, value in entry.items() if key != kind}}
    if kind in READERS:
        of = entry[kind].items()
        fields["files"] = {split: _texts(places) for split, places in of}
    else:
        fields["name"] = entry[kind]
    if kind == "hub":
        fields.setdefault("config", config)
    for name in ("header", "lacks"):
        fields[name] = _texts(fields.get(name))
    source = _record(Source, fields, where)
    names.resolve(source.adapter, columns.ADAPTERS, kind="adapter", where=where)
    return source


def _texts(value: Any) -> tuple[str, ...]:
    """Returns a list of texts that may have been left out, or be one text."""
    texts: tuple[Any, ...] = (value,) if isinstance(value, str) else tuple(value or ())
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"texts are wanted, but {value!r} came")
    return texts


def _record(kind: type, fields: Mapping[str, Any], where: str) -> Any:
    known = dataclasses.fields(kind)
    for name in fields:
        names.resolve(name, [each.name for each in known], kind="field", where=where)
    required = [each.name for each in known if each.default is each.default_factory is dataclasses.MISSING]
    missing = [name for name in required if name not in fields]
    if missing:
        raise UserError(f"{where}: {', '.join(missing)} should be given for a {kind.__name__.lower()}.")
    return kind(**fields)
