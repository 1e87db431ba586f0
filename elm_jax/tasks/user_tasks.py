"""User tasks: datasets and prompts that a user defines in YAML or Python, used like the catalogue's.

A multiple-choice task over JSON lines files, with two prompts, in YAML; the files are beside it:

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

    import elm_jax

    elm_jax.define_task(
        "reviews",
        jsonl={"train": "reviews.jsonl", "validation": "held_out.jsonl"},
        prompts={
            "is it good": ("{{text}} Is this good? ||| {{answer_choices[label]}}", "no ||| yes"),
            "would you buy": ("{{text}} Would you buy it? ||| {{answer_choices[label]}}", "never ||| gladly"),
        },
    )

Commands take either file as `--tasks FILE`. Its tasks are then known as `reviews/is it good` and
`reviews/would you buy`, and both of them as `reviews`. Templates are PromptSource's: jinja, with `|||`
between input and target and between choices. A prompt without choices generates. A dataset may have any field
of the catalogue's (`tasks/catalogue/train.yaml` explains them): `columns`, which are then required, `label`
(default: the column `label` if a prompt reads one), `sources`, `family`, `split`, `evaluate`, `training`.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.frames import Records
from elm_jax.prompting.reader import read_yaml
from elm_jax.records import TaskSpec
from elm_jax.tasks import datasets, in_memory_rows, mini, specs, user_prompts, user_sources
from elm_jax.tasks.datasets import Dataset
from elm_jax.tasks.user_sources import RowFunction

OWN_GROUP = "own"
# Datasets that the module which is being read has defined; None outside of one, as in a notebook.
_defined: ContextVar[set[str] | None] = ContextVar("_defined", default=None)


def load_tasks(file: storage.PathLike) -> Records[TaskSpec]:
    """Reads a file of tasks, YAML or Python, adds them to this process, and returns their specs.

    A Python file is run, and calls `define_task`; a YAML file cannot name code.

    Args:
        file: The file.

    Returns:
        The specs of its tasks.

    Raises:
        UserError: If the file is missing, or if anything in it is wrong.
    """
    path = storage.path(file)
    if not path.is_file():
        raise UserError(f"Expected a file of tasks at {str(file)!r}, got no file. Fix: correct the path.")
    if path.suffix == ".py":
        return Records(_load_module(file, os.path.realpath(path)))
    known_as = os.path.realpath(path)
    tree = read_yaml(str(file), storage.read_content(path, what="A file of tasks", most=storage.MOST_TEXT))
    return Records(_add(tree, str(file), os.path.dirname(known_as), file=known_as))


def _load_module(file: storage.PathLike, known_as: str) -> list[TaskSpec]:
    before = datasets.user_datasets()
    token = _defined.set(set())
    try:
        import_user_module(file, reload=True)
    finally:
        _defined.reset(token)
    after = datasets.user_datasets()
    made = {name: each for name, each in after.items() if before.get(name) is not each}
    for name in made.keys() & before.keys():
        if before[name].file not in (None, known_as):
            datasets.add_user_datasets({name: before[name]})
            raise _other_file_error(str(file), name, str(before[name].file))
    datasets.add_user_datasets(
        {name: dataclasses.replace(each, file=known_as) for name, each in made.items()}
    )
    return _list_specs(made)


def define_task(
    name: str,
    *,
    prompts: Mapping[str, tuple[str, str | None] | str],
    jsonl: Mapping[str, str] | str | None = None,
    csv: Mapping[str, str] | str | None = None,
    parquet: Mapping[str, str] | str | None = None,
    rows: Any = None,
    splits: Iterable[str] = ("train",),
    **fields: Any,
) -> Records[TaskSpec]:
    """Defines a dataset with its prompts in this process and returns the specs of its tasks.

    Args:
        name: Name of the dataset; its tasks have the ids `name/prompt`.
        prompts: Name of a prompt -> its jinja and its answer choices, or its jinja alone if it generates.
        jsonl: Split -> JSON lines file, or one file, which is the split train.
        csv: The same of CSV files.
        parquet: The same of Parquet files.
        rows: In place of files: a list of dicts, a DataFrame or a dataset of Hugging Face, which is the split
            train; such by split; or a function that takes a split and returns its rows.
        splits: The splits of `rows` that is a function.
        **fields: Further fields of a dataset of the catalogue, such as `columns` or `evaluate`.

    Returns:
        The specs of the dataset's tasks.

    Raises:
        UserError: If a name or a field is wrong, or if the catalogue has a dataset of this name.

    >>> pets = [{"text": "rex", "label": 1}]
    >>> prompts = {"kind": ("{{text}} ||| {{answer_choices[label]}}", "cat ||| dog")}
    >>> [spec.id for spec in define_task("pets", rows=pets, prompts=prompts)]
    ['pets/kind']
    """
    inline = {
        prompt: {"jinja": made} if isinstance(made, str) else {"jinja": made[0], "answer_choices": made[1]}
        for prompt, made in prompts.items()
    }
    files = {"jsonl": jsonl, "csv": csv, "parquet": parquet}
    entry = {"prompts": inline, **{kind: given for kind, given in files.items() if given}, **fields}
    function: RowFunction | None = None
    if rows is not None:
        function, known = in_memory_rows.read_rows(rows, splits)
        entry["splits"] = dict.fromkeys(known)
        entry["sources"] = []
    where = f"the definition of {name!r}"
    defined = _defined.get()
    if defined is not None and name in defined:
        raise UserError(f"Expected a new dataset, got {name!r} again in one file. Fix: rename one.")
    if defined is not None:
        defined.add(name)
    return Records(_add({"datasets": {name: entry}}, where, os.getcwd(), function))


def find_module_file(name: storage.PathLike) -> str:
    """Returns the file of a user's module, without importing it."""
    module = os.fspath(name)
    file = _find_local_file(module)
    if file is None and not module.endswith(".py"):
        with contextlib.suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(module)
            if spec and spec.origin and os.path.isfile(spec.origin):
                file = spec.origin
    if file is None:
        raise UserError(
            f"Expected a Python module or file, got {module!r}, which does not exist. Fix: correct the name "
            "or install it."
        )
    return file


def _find_local_file(module: str) -> str | None:
    """Returns the file that a module's file or name stands for here; None for what is installed or absent."""
    if module.endswith(".py"):
        return os.path.realpath(module) if os.path.isfile(module) else None
    path = os.path.join(os.getcwd(), *module.split("."))
    files = (f"{path}.py", os.path.join(path, "__init__.py"))
    return next((os.path.realpath(file) for file in files if os.path.isfile(file)), None)


def import_user_module(name: storage.PathLike, *, reload: bool = False) -> Any:
    """Imports a user's module by name or file; the working directory is searched too.

    Args:
        name: The module's name or file.
        reload: Whether a module that is imported already is run again.

    Raises:
        UserError: If the module does not exist, if another one has its name, or if its code raises.
    """
    module, directory = os.fspath(name), os.getcwd()
    file = _find_local_file(module)
    if module.endswith(".py"):
        path = os.path.realpath(module)
        directory, module = os.path.dirname(path), os.path.basename(path).removesuffix(".py")
    if directory not in sys.path:
        # Processes that are started from here search it too: after what is installed, for a file beside the
        # module may have the name of one of Python's own.
        installed = set(sysconfig.get_paths().values())
        places = [place for place, entry in enumerate(sys.path, start=1) if entry in installed]
        sys.path.insert(max(places, default=len(sys.path)), directory)
        importlib.invalidate_caches()
    known = module in sys.modules
    try:
        found = importlib.import_module(module)
        if file and os.path.realpath(found.__file__ or "") != file:
            raise UserError(
                f"Expected {str(name)!r} to have a name of its own, got that of another module, {module!r}. "
                "Fix: rename it."
            )
        return importlib.reload(found) if reload and known else found
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise UserError(
            f"Expected the module {module!r} to be imported from {directory!r}, got {type(error).__name__}: "
            f"{error}. Fix: correct the module."
        ) from error


def _add(
    tree: Any,
    where: str,
    directory: str,
    rows: RowFunction | None = None,
    *,
    file: str | None = None,
) -> list[TaskSpec]:
    """Adds datasets with defaults for the fields that they lack; a YAML file may not name functions."""
    if not isinstance(tree, dict) or not isinstance(tree.get("datasets"), dict) or not tree["datasets"]:
        raise UserError(f"Expected {where!r} to hold a mapping `datasets`, got another value. Fix: add it.")
    group, defaults = tree.get("group", OWN_GROUP), tree.get("defaults") or {}
    if group in {each.group for each in datasets.catalogue().values()} or str(group).startswith("mini"):
        raise UserError(f"{where!r}: expected a new group, got {group!r} of the catalogue. Fix: rename it.")
    entries = {}
    for name, entry in tree["datasets"].items():
        if not isinstance(name, str) or "/" in name or not isinstance(entry, dict):
            raise UserError(
                f"{where!r}: expected the name of a dataset, without a slash, and its fields, got {name!r}. "
                "Fix: correct it."
            )
        if name in mini.DATASETS:
            raise UserError(f"Expected a new dataset, got {name!r} of the embedded suite. Fix: rename yours.")
        known = datasets.user_datasets().get(name)
        if file and known and known.file and known.file != file:
            raise _other_file_error(where, name, known.file)
        entries[name] = user_prompts.complete_dataset_fields(
            name, {**defaults, **entry}, directory, f"{where!r}, dataset {name!r}"
        )
    found = datasets.parse_datasets({"group": group, "datasets": entries}, where)
    functions = [
        source.name for made in found.values() for source in made.sources if source.kind == "function"
    ]
    if file and functions:
        raise UserError(
            f"{where!r}: expected rows from files, since reading YAML runs no code, got the function "
            f"{functions[0]!r}. Fix: define the dataset in a Python file, with `define_task(…, rows=…)`."
        )
    for name, made in found.items():
        numbers = user_prompts.find_number_columns(made, directory)
        resolved = user_sources.resolve_sources(made, directory, rows, numbers)
        found[name] = dataclasses.replace(resolved, file=file, directory=directory)
    datasets.add_user_datasets(found)
    return _list_specs(found)


def _list_specs(found: Mapping[str, Dataset]) -> list[TaskSpec]:
    return [spec for spec in specs.task_specs() if spec.dataset in found]


def _other_file_error(where: str, name: str, file: str) -> UserError:
    return UserError(
        f"{where!r}: expected a new dataset, got {name!r}, which {file!r} defines. Fix: rename one."
    )
