"""The settings of a run, in `run.json`: where its base lies, and how it reads rows."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from elm_jax import storage
from elm_jax.session.workspace import Workspace
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.weights import base as weights_base
from elm_jax.weights import known
from elm_jax.weights import load as weights

REMEMBERED = "run.json"
PLACES = {"data_dir", "templates_dir", "prepared", "vocabulary"}  # of a source that are one path


def remember(
    workspace: Workspace,
    initial_checkpoint: storage.PathLike | None,
    source: Source | None,
    lengths: Lengths | None,
    dtype: str | None = None,
) -> None:
    """Notes in a workspace where its base lies and how data is read, so that later verbs need no flags.

    Places inside the workspace are kept relative to it, so that it can be moved or copied.
    """
    told = asdict(source or Source())
    if told["input_eos"] is None and initial_checkpoint is not None:
        told["input_eos"] = known.eos_on_input(str(initial_checkpoint))
    base = None if initial_checkpoint is None else weights.find(initial_checkpoint)
    note = {"base": base, "source": told, "lengths": asdict(lengths or Lengths())}
    _write(workspace, note | ({"dtype": weights_base.dtype_name(dtype)} if dtype else {}))


def remember_tasks(workspace: Workspace, files: Iterable[storage.PathLike]) -> None:
    """Notes files that define tasks of one's own beside those that a workspace knows already."""
    note = remembered(workspace)
    there = note["source"].get("tasks", [])
    found = [*there, *(str(storage.path(file).resolve()) for file in files)]
    if set(found) != set(there):
        note["source"]["tasks"] = list(dict.fromkeys(found))
        _write(workspace, note)


def remembered(workspace: Workspace) -> dict[str, Any]:
    """Returns what `remember` noted, with absolute places; the defaults where it never did."""
    file = workspace.root / REMEMBERED
    if not file.exists():
        return {"base": None, "source": {}, "lengths": {}}
    root = workspace.root.resolve()
    # An absolute place stands for itself, whatever it is joined to.
    return _placed(storage.read_json(file, what="A run's settings"), lambda place: str(root / place))


def base_of(workspace: Workspace) -> storage.PathLike:
    """Returns where a workspace's base lies: the one that is remembered, or its own."""
    return remembered(workspace)["base"] or workspace.base


def _write(workspace: Workspace, note: Mapping[str, Any]) -> None:
    """Writes what a workspace remembers; a place inside it as the way from its root."""
    root = workspace.root.resolve()

    def told(place: storage.PathLike) -> str:
        where = storage.path(place).resolve()
        return str(where.relative_to(root) if where.is_relative_to(root) else where)

    storage.write_json(workspace.root / REMEMBERED, _placed(note, told))


def _placed(note: Mapping[str, Any], put: Callable[[storage.PathLike], str]) -> dict[str, Any]:
    """Returns a note whose every place was put otherwise."""
    source = dict(note["source"])
    for name in PLACES & source.keys():
        source[name] = None if source[name] is None else put(source[name])
    if "tasks" in source:
        source["tasks"] = [put(file) for file in source["tasks"]]
    return {**note, "base": None if note["base"] is None else put(note["base"]), "source": source}
