"""Identity: what the rows of a split depend on, and what they hold.

Everything that is made of rows carries their identity: prepared rows, experts, keys, scores, selections and
reports. What rows depend on is told without reading any of them, so it must be cheap: files by their bytes,
local directories by those of all of their files, TFDS's datasets by their version and the file that describes
them, the hub's by name and revision, a function by the file of its code (what it reads is not noticed). Where
that differs, the rows are read and compared by their digests (`data.row_digests`), so that what was touched
and not changed is current.
"""

import functools
import hashlib
import importlib.util
import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from etils import epath

from elm_jax import schema, storage
from elm_jax.data import prepared_files, row_digests, tokenized_rows
from elm_jax.data.row_digests import RowDigests
from elm_jax.data.task_selection import SEQIO, prepared_file
from elm_jax.records import VOCABULARY, PromptedExample, TaskSpec
from elm_jax.tasks import datasets as catalogue
from elm_jax.tasks import mini, mini_words, original, source_choice
from elm_jax.tasks.data_source import Lengths, Source, get_split
from elm_jax.tasks.datasets import Dataset, all_datasets, training
from elm_jax.tasks.in_memory_rows import InMemoryRows
from elm_jax.tasks.specs import is_mini_task
from elm_jax.tasks.task_templates import find_template
from elm_jax.tokenizers.sentencepiece import Tokenizer

MODEL_SETTINGS = (VOCABULARY, "input_eos", "prompt tokens", "answer tokens", "base", "dtype")
"""Settings that change what a model makes of the texts, and no text."""
ROW_IDENTITIES_KEY = "made_of"
"""The key of a recipe that has the identity of the rows of every task of an expert."""


def identify_rows(spec: TaskSpec, source: Source) -> Mapping[str, Any]:
    """Returns everything that the rows depend on which `raw_rows.load_rows` returns, except the seed.

    Raises:
        UserError: If no source of the dataset is available.
    """
    split, limit, data_dir = get_split(spec, source), source.limit, source.data_dir
    if is_mini_task(spec):
        code = [_digest_file(epath.Path(module.__file__ or "")) for module in (mini, mini_words)]
        return {"dataset": spec.dataset, "split": split, "rows": limit, "code": code}
    dataset = all_datasets()[spec.dataset]
    row_source = source_choice.choose_source(dataset, data_dir)
    if limit is None and dataset.training and split == dataset.split:
        limit = training(dataset, spec.prompt).rows
    return {
        "dataset": dataset.name,
        "split": row_source.splits.get(split, split),
        "rows": limit,
        "kind": row_source.kind,
        "name": [row_source.name, row_source.config, row_source.revision],
        "columns": [row_source.adapter, dataset.label, *dataset.columns, *row_source.header],
        **_format_identity(row_source),
        "content": _identify_content(dataset, row_source, split, data_dir, spec.prompt),
    }


def _format_identity(source: catalogue.RowSource) -> dict[str, str]:
    """Returns how files are read if it is not the usual way, so that those of first versions are current."""
    usual = catalogue.RowSource(source.kind)
    given = {name: getattr(source, name) for name in ("delimiter", "encoding")}
    return {name: value for name, value in given.items() if value != getattr(usual, name)}


def find_revision(spec: TaskSpec, source: Source) -> str | None:
    """Returns what says which commits of a hub's dataset were downloaded here; None if none was.

    It is no part of `identify_rows`, since prepared rows are used without what they were downloaded from.
    """
    if spec.group == SEQIO or is_mini_task(spec):
        return None
    chosen = source_choice.choose_source(all_datasets()[spec.dataset], source.data_dir)
    if chosen.kind != "hub" or epath.Path(chosen.name).is_dir():
        return None
    files, rows = source_choice.find_hub_caches(chosen)
    noted = files / "refs" / (chosen.revision or "main")
    commits = [noted.read_text().strip()] if noted.is_file() else []
    commits += sorted({path.name for path in rows.glob("*/*" if chosen.config else "*/*/*") if path.is_dir()})
    return storage.fingerprint(commits) if commits else None


@dataclass(frozen=True)
class RowsIdentity:
    """What the rows of a task are.

    Attributes:
        settings: What they depend on by name: values, or digests of what is long.
        digests: Digests of what they hold.
    """

    settings: Mapping[str, Any]
    digests: RowDigests

    def to_json(self) -> dict[str, Any]:
        """Returns the identity as plain values."""
        return {"settings": dict(self.settings), "digests": self.digests.to_json()}


@dataclass(frozen=True)
class _ReadingSettings(schema.Form):
    """Settings that a source is restored from."""

    split: str
    limit: schema.Size | None
    seed: int
    truncate: schema.Size | None
    faithful: list[str]


def from_json(value: Any) -> RowsIdentity | None:
    """Returns the identity that `to_json` wrote; None if the value is of another form."""
    try:
        settings = dict(value["settings"])
        if "limit" in settings:
            _build_reading_settings(settings)
        return RowsIdentity(settings, row_digests.from_json(value["digests"]))
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _build_reading_settings(settings: Mapping[str, Any]) -> _ReadingSettings:
    own = {each.name: settings[each.name] for each in fields(_ReadingSettings)}
    return schema.build_record(own, _ReadingSettings)


def identify_task(
    spec: TaskSpec,
    source: Source,
    examples: Sequence[PromptedExample],
    tokenizer: Tokenizer,
    lengths: Lengths,
) -> RowsIdentity:
    """Returns the identity of a task's rows.

    Args:
        spec: The task.
        source: Where its rows come from.
        examples: The rows.
        tokenizer: What they are tokenised with.
        lengths: How many tokens are kept.
    """
    texts = identify_texts(spec, source, examples)
    return replace(texts, settings={**texts.settings, **identify_tokens(tokenizer, lengths)})


def identify_texts(spec: TaskSpec, source: Source, examples: Sequence[PromptedExample]) -> RowsIdentity:
    """Returns the identity of a task's rows as texts, whatever they are tokenised with."""
    return RowsIdentity(identify_settings(spec, source), tokenized_rows.find_digests(examples))


def identify_settings(spec: TaskSpec, source: Source) -> dict[str, Any]:
    """Returns what a task's rendered rows depend on, without reading them.

    Raises:
        UserError: If there is no template, or no source of the dataset.
    """
    if spec.group == SEQIO:
        return {"split": get_split(spec, source), "rows": _find_prepared_rendering(spec, source)}
    template = find_template(spec, source.templates_dir)
    return {
        "rows": storage.fingerprint(identify_rows(spec, source)),
        "revision": find_revision(spec, source),
        "template": storage.fingerprint(template.jinja),
        "answer_choices": storage.fingerprint(template.answer_choices),
        "split": get_split(spec, source),
        "limit": source.limit,
        "seed": source.seed,
        "truncate": source.truncate,
        "faithful": list(original.list_row_switches(source.faithful)),
    }


def identify_tokens(tokenizer: Tokenizer, lengths: Lengths) -> dict[str, Any]:
    """Returns what token ids depend on beside the text."""
    return {
        VOCABULARY: tokenizer.fingerprint,
        "input_eos": tokenizer.input_eos,
        "prompt tokens": lengths.prompt,
        "answer tokens": lengths.answer,
    }


def restore_source(noted: RowsIdentity, spec: TaskSpec, source: Source) -> Source:
    """Returns a source with the split, the limit, the seed and the cuts that an identity notes."""
    own = noted.settings
    if "limit" not in own:
        return source
    reading = asdict(_build_reading_settings(own))
    return replace(source, splits={**source.splits, spec.dataset: reading.pop("split")}, **reading)


def describe_changes(before: RowsIdentity, now: RowsIdentity) -> str:
    """Returns what differs between rows, as "input of 40 of 40 rows, template"; "" if they are the same.

    Settings that changed no text of a row are not named, except those of `MODEL_SETTINGS`.
    """
    rows = row_digests.describe_differences(before.digests, now.digests)
    causes = [
        name
        for name, value in before.settings.items()
        if name in now.settings and value != now.settings[name] and (name in MODEL_SETTINGS or rows)
    ]
    # That the rows of a file differ is what the digests say in words.
    return ", ".join([*rows, *(cause for cause in causes if cause != "rows")])


def describe_all_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Returns what differs between the rows of two recipes, task by task; "" if they are the same.

    Of rows that a recipe does not know, since it was made before they were noted, nothing is said.
    """
    changes = {
        task: describe_changes(was, own)
        for task, value in now.get(ROW_IDENTITIES_KEY, {}).items()
        if (own := from_json(value)) and (was := from_json(before.get(ROW_IDENTITIES_KEY, {}).get(task)))
    }
    told = {task: change for task, change in changes.items() if change}
    if len(now.get(ROW_IDENTITIES_KEY, {})) == 1:
        return next(iter(told.values()), "")
    return "; ".join(f"{task}: {change}" for task, change in told.items())


def merge_identities(recipes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the part of a merged expert's recipe that says what rows its parts were trained on.

    Digests of single rows are left out: there may be hundreds of parts.
    """
    tasks = {task: value for recipe in recipes for task, value in recipe.get(ROW_IDENTITIES_KEY, {}).items()}
    short = {
        task: {**value, "digests": {**value["digests"], "sample": {}}}
        for task, value in tasks.items()
        if from_json(value)
    }
    return {ROW_IDENTITIES_KEY: short} if short else {}


def drop_identity(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an expert's recipe as people read it, without the digests of its rows."""
    return {name: value for name, value in recipe.items() if name != ROW_IDENTITIES_KEY}


def _identify_content(
    dataset: Dataset, source: catalogue.RowSource, split: str, data_dir: storage.PathLike | None, prompt: str
) -> Any:
    root = storage.path(data_dir if data_dir is not None else ".")
    if source.files:
        repeated = [file for file in dataset.faithful.values() if isinstance(file, str)]
        files = [file.replace("{prompt}", prompt) for file in (*source.files.get(split, ()), *repeated)]
        return {file: _digest_file(root / file) for file in files}
    if source.kind == "tfds":
        directory = source_choice.find_tfds_directory(source, root if data_dir is not None else None)
        return directory and [
            _digest_file(directory / name) for name in ("dataset_info.json", "features.json")
        ]
    if source.kind == "function":
        return _digest_code(source)
    directory = epath.Path(source.name)
    if directory.is_dir():
        files = sorted(path for path in Path(directory).rglob("*") if path.is_file())
        return {str(path.relative_to(directory)): _digest_file(epath.Path(path)) for path in files}
    return None


def _find_prepared_rendering(spec: TaskSpec, source: Source) -> str | None:
    """Returns the key of the rendering that prepared rows are from; None if there are none."""
    if source.prepared is None:
        return None
    file = prepared_file(source.prepared, spec, get_split(spec, source))
    return prepared_files.read_cache_key(file).partition("-")[0] if file.exists() else None


def _digest_code(source: catalogue.RowSource) -> str | None:
    """Returns the digest of the file of a function's code; None if it is in no file."""
    if isinstance(source.function, InMemoryRows):
        return source.function.digest
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
