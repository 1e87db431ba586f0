"""Your own tasks: datasets and prompts defined in a few lines of YAML or Python, used like the catalogue's.

A multiple-choice task over files of JSON lines, with two prompts, in YAML; the files lie beside it:

    datasets:
      reviews:
        jsonl: {train: reviews.jsonl, validation: held_out.jsonl}
        prompts:
          is it good:
            answer_choices: "no ||| yes"
            jinja: "{{text}} Is this good? ||| {{answer_choices[label]}}"
          would you buy:
            answer_choices: "never ||| gladly"
            jinja: "{{text}} Would you buy it? ||| {{answer_choices[label]}}"

The same in Python:

    from elm_jax.tasks import own

    own.define(
        "reviews",
        jsonl={"train": "reviews.jsonl", "validation": "held_out.jsonl"},
        prompts={
            "is it good": ("{{text}} Is this good? ||| {{answer_choices[label]}}", "no ||| yes"),
            "would you buy": ("{{text}} Would you buy it? ||| {{answer_choices[label]}}", "never ||| gladly"),
        },
    )

Either file is given to the commands as `--tasks FILE`, and its tasks are then known as `reviews/is it good`
and `reviews/would you buy`, all of them as `reviews`. Templates are PromptSource's: jinja, with `|||` between
input and target, and between choices. A prompt without choices generates. A dataset may also say whatever
the catalogue's say (`tasks/catalogue/train.yaml` explains the fields): `columns`, which are then checked,
`label` (the column `label` where a prompt reads one), `sources`, `family`, `split`, `evaluate`, `training`.
"""

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.prompting.reader import read_yaml
from elm_jax.records import TaskSpec
from elm_jax.tasks import datasets, mini, specs
from elm_jax.tasks.datasets import Dataset, Source
from elm_jax.tasks.files import read_csv

GROUP = "own"
FILES = ("jsonl", "csv", "parquet")


def load_tasks(file: storage.PathLike) -> list[TaskSpec]:
    """Reads a file of tasks, YAML or Python, adds them to this process, and returns them.

    A Python file is run, and calls `define`; a YAML file may name no code. Raises `UserError` naming the file
    for whatever is wrong in it.
    """
    place = storage.path(file)
    if not place.is_file():
        raise UserError(f"A file of tasks is wanted at {str(file)!r}, but no file is there.")
    if place.suffix == ".py":
        before = datasets.added()
        import_user_module(file, again=True)
        return _specs({name: made for name, made in datasets.added().items() if before.get(name) is not made})
    return _add(read_yaml(str(file), place.read_bytes()), str(file), os.fspath(place.parent), plain=True)


def define_task(
    name: str,
    *,
    prompts: Mapping[str, tuple[str, str | None] | str],
    jsonl: Mapping[str, str] | str | None = None,
    csv: Mapping[str, str] | str | None = None,
    parquet: Mapping[str, str] | str | None = None,
    rows: Callable[[str], Iterable[Mapping[str, Any]]] | None = None,
    splits: Iterable[str] = ("train",),
    **more: Any,
) -> list[TaskSpec]:
    """Adds a dataset with its prompts to this process and returns its tasks.

    `prompts` maps a prompt's name to its jinja and its answer choices, or to jinja alone where it generates.
    Rows come from a file for each split (one file is the split train), or from a function that takes the name
    of a split, of which there are `splits`. `more` are further fields of a dataset of the catalogue.
    """
    written = {
        prompt: {"jinja": made} if isinstance(made, str) else {"jinja": made[0], "answer_choices": made[1]}
        for prompt, made in prompts.items()
    }
    files = {"jsonl": jsonl, "csv": csv, "parquet": parquet}
    entry = {"prompts": written, **{kind: given for kind, given in files.items() if given}, **more}
    if rows is not None:
        entry["splits"] = dict.fromkeys(splits)
        entry["sources"] = []
    where = f"the definition of {name!r}"
    return _add({"datasets": {name: entry}}, where, os.getcwd(), rows)


def find_module_file(name: storage.PathLike) -> str:
    """Returns the file of a module of the user's, which is not imported for it."""
    called = os.fspath(name)
    if called.endswith(".py"):
        if os.path.isfile(called):
            return os.path.realpath(called)
    else:
        place = os.path.join(os.getcwd(), *called.split("."))
        for file in (f"{place}.py", os.path.join(place, "__init__.py")):
            if os.path.isfile(file):
                return file
        with contextlib.suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(called)
            if spec and spec.origin and os.path.isfile(spec.origin):
                return spec.origin
    raise UserError(f"A Python module is wanted, but none called {called!r} is there or installed.")


def import_user_module(name: storage.PathLike, *, again: bool = False) -> Any:
    """Imports a module of the user's by its name or its file; the working directory is searched too.

    With `again` it is run once more where it was imported before.
    """
    called, directory = os.fspath(name), os.getcwd()
    file = None
    if called.endswith(".py"):
        file = os.path.realpath(called)
        directory, called = os.path.dirname(file), os.path.basename(file).removesuffix(".py")
    if directory not in sys.path:  # processes that are started from here search it as well
        sys.path.insert(0, directory)
    known = called in sys.modules
    try:
        found = importlib.import_module(called)
        if file and os.path.realpath(found.__file__ or "") != file:
            raise UserError(f"{str(name)!r} has the name of another module, {called!r}. Rename it.")
        return importlib.reload(found) if again and known else found
    except UserError:
        raise
    except Exception as error:  # the user's own code may raise whatever it likes
        raise UserError(
            f"The module {called!r} cannot be imported from {directory!r} ({type(error).__name__}: {error})."
        ) from error


def _add(
    tree: Any,
    where: str,
    directory: str,
    rows: Callable[[str], Iterable[Mapping[str, Any]]] | None = None,
    *,
    plain: bool = False,
) -> list[TaskSpec]:
    """Fills in what one's own datasets may leave out, and adds them; `plain` ones may name no function."""
    if not isinstance(tree, dict) or not isinstance(tree.get("datasets"), dict) or not tree["datasets"]:
        raise UserError(f"{where!r} should hold a mapping named `datasets`, but does not.")
    group, defaults = tree.get("group", GROUP), tree.get("defaults") or {}
    if group in {each.group for each in datasets.catalogue().values()} or str(group).startswith("mini"):
        raise UserError(f"{where!r}: {group!r} is a group of the catalogue's. Call your own otherwise.")
    entries = {}
    for name, entry in tree["datasets"].items():
        if not isinstance(name, str) or "/" in name or not isinstance(entry, dict):
            raise UserError(f"{where!r}: {name!r} should be a dataset's name (no slash) with its fields.")
        if name in mini.DATASETS:
            raise UserError(f"{name!r} is a dataset of the embedded suite already. Call your own otherwise.")
        entries[name] = _filled(name, {**defaults, **entry}, f"{where!r}, dataset {name!r}")
    found = datasets.parse({"group": group, "datasets": entries}, where)
    called = [source.name for made in found.values() for source in made.sources if source.kind == "function"]
    if plain and called:
        raise UserError(
            f"{where!r}: a file of YAML can be read without running anything, so rows may not come from the "
            f"function {called[0]!r}. Define the dataset in a Python file, by `own.define(…, rows=…)`."
        )
    found = {name: _at_hand(made, directory, rows) for name, made in found.items()}
    datasets.add(found)
    return _specs(found)


def _filled(name: str, entry: dict[str, Any], where: str) -> dict[str, Any]:
    entry = {"family": name, "sources": [], **entry}
    for kind in FILES:
        if kind in entry:
            given = entry.pop(kind)
            files = given if isinstance(given, Mapping) else {"train": given}
            entry["sources"] = [*entry["sources"], {kind: files}]
    files = [source.get(kind) for source in entry["sources"] for kind in FILES if isinstance(source, dict)]
    splits = dict.fromkeys(split for each in files if isinstance(each, Mapping) for split in each)
    entry.setdefault("splits", splits)
    if not entry["splits"]:
        raise UserError(f"{where}: rows are wanted from files, such as `jsonl: {{train: rows.jsonl}}`.")
    entry.setdefault("split", next(iter(entry["splits"])))
    prompts = entry.get("prompts")
    if not isinstance(prompts, Mapping) or not all(isinstance(made, Mapping) for made in prompts.values()):
        raise UserError(
            f"{where}: `prompts` should map each prompt's name to its `jinja` and, if it has choices, its "
            "`answer_choices`."
        )
    metrics, inline = {}, {}
    for prompt, made in prompts.items():
        fields = dict(made)
        ranked = fields.get("answer_choices") is not None
        metrics[str(prompt)] = fields.pop("metric", "accuracy" if ranked else "exact_match")
        texts = all(isinstance(text, str | None) for text in fields.values())
        if not texts or set(fields) - {"jinja", "answer_choices"} or not isinstance(fields.get("jinja"), str):
            raise UserError(
                f"{where}, prompt {prompt!r}: texts called `jinja` and `answer_choices` are wanted, and a "
                f"`metric` may be there, but {made!r:.200} came."
            )
        inline[str(prompt)] = fields
    # A label of -1 would take the last choice: rows that carry one have no right answer.
    if any(re.search(r"\{[{%][^}]*\blabel\b", made["jinja"]) for made in inline.values()):
        entry.setdefault("label", "label")
    return {**entry, "prompts": metrics, "inline": inline}


def _at_hand(
    dataset: Dataset, directory: str, rows: Callable[[str], Iterable[Mapping[str, Any]]] | None
) -> Dataset:
    """Makes the files of a dataset stand below the directory of its definition, not a data directory."""
    placed = []
    for source in dataset.sources:
        if source.files:
            files = {
                split: tuple(os.path.join(directory, file) for file in of_split)
                for split, of_split in source.files.items()
            }
            read = functools.partial(_read, source.kind, files, source.header)
            name = os.path.basename(next(iter(files.values()))[0])
            source = dataclasses.replace(source, kind="function", name=name, files=files, function=read)
        placed.append(source)
    if rows is not None:
        placed.append(Source("function", function=rows))
    return dataclasses.replace(dataset, sources=tuple(placed))


def _read(
    kind: str, files: Mapping[str, tuple[str, ...]], header: tuple[str, ...], split: str
) -> list[Mapping[str, Any]]:
    if split not in files:
        raise UserError(f"A file of the {split} split is wanted, but there are only: {', '.join(files)}.")
    reader = functools.partial(read_csv, header=header) if header else datasets.READERS[kind]
    return [row for file in files[split] for row in reader(file)]


def _specs(found: Mapping[str, Dataset]) -> list[TaskSpec]:
    return [spec for spec in specs.task_specs() if spec.dataset in found]
