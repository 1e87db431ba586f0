"""Settings: what a run's directory remembers about its base and about how rows are read."""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from elm_jax import buckets, locks, schema, storage
from elm_jax.errors import UserError
from elm_jax.records import OnBadRow
from elm_jax.session import trust
from elm_jax.session.run_directory import Workspace
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.weights import base_model, published_models
from elm_jax.weights import load as weights

SETTINGS_FILE = "run.json"
SOURCE_PATHS = {"data_dir", "templates_dir", "prepared", "vocabulary"}
"""Fields of a source that are one path."""


@dataclass(frozen=True)
class _SourceForm(schema.Form):
    """A `Source` in the file; a field that it does not know would be dropped without a word."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {**schema.Form.__pydantic_config__, "extra": "forbid"}

    data_dir: schema.Text | None = None
    templates_dir: schema.Text | None = None
    splits: Mapping[str, schema.Text] = field(default_factory=dict)
    seed: int = 42
    limit: schema.Size | None = None
    prepared: schema.Text | None = None
    tasks: tuple[schema.Text, ...] = ()
    vocabulary: schema.Text | None = None
    truncate: schema.Size | None = None
    faithful: str | tuple[str, ...] = ()
    input_eos: bool | None = None
    on_bad_row: OnBadRow = "leave-out"


@dataclass(frozen=True)
class _LengthsForm(schema.Form):
    prompt: schema.Size = 1
    answer: schema.Size = 1


@dataclass(frozen=True)
class _SettingsForm(schema.FileForm):
    base: schema.Text | None
    source: _SourceForm
    lengths: _LengthsForm
    dtype: Literal["float32", "bfloat16"] | None = None


def save_run_settings(
    workspace: Workspace,
    initial_checkpoint: storage.PathLike | None,
    source: Source | None,
    lengths: Lengths | None,
    dtype: str | None = None,
) -> None:
    """Writes where a run's base is and how its rows are read, so that later commands need no flags.

    Paths inside the workspace are written relative to it, so that it can be moved or copied.
    """
    trust.remember((source or Source()).tasks)
    settings = make_run_settings(initial_checkpoint, source, lengths, dtype)
    with _lock(workspace):
        _write(workspace, settings)


def make_run_settings(
    initial_checkpoint: storage.PathLike | None,
    source: Source | None,
    lengths: Lengths | None,
    dtype: str | None = None,
) -> dict[str, Any]:
    """Returns the settings of a new run as `load_run_settings` would read them; nothing is written."""
    fields = asdict(source or Source())
    if fields["input_eos"] is None and initial_checkpoint is not None:
        fields["input_eos"] = published_models.eos_on_input(str(initial_checkpoint))
    base = None if initial_checkpoint is None else weights.find_checkpoint(initial_checkpoint)
    settings = {"base": base, "source": fields, "lengths": asdict(lengths or Lengths())}
    settings |= {"dtype": base_model.dtype_name(dtype)} if dtype else {}
    return _map_paths(settings, lambda path: str(storage.absolute(path)))


def add_task_files(workspace: Workspace, files: Iterable[storage.PathLike]) -> None:
    """Adds files that define tasks to those that a run remembers."""
    added = [str(storage.absolute(file)) for file in files]
    if set(added) <= set(load_run_settings(workspace)["source"].get("tasks", [])):
        return
    with _lock(workspace):
        settings = load_run_settings(workspace)
        before = settings["source"].get("tasks", [])
        settings["source"]["tasks"] = list(dict.fromkeys([*before, *added]))
        _write(workspace, settings)


def load_run_settings(workspace: Workspace) -> dict[str, Any]:
    """Returns a run's settings, with absolute paths; the defaults if none were saved.

    Returns:
        "base", the base's directory or None for the run's own; "source" and "lengths", the fields of these
        records; and "dtype", if one was given.
    """
    file = workspace.root / SETTINGS_FILE
    if not file.exists():
        return {"base": None, "source": {}, "lengths": {}}
    root = storage.absolute(workspace.root)
    what = "A run's settings"
    schema.read(file, _SettingsForm, what=what, fix="name the base again, as `elm train` does at first")
    # An absolute path stays what it is, whatever it is joined to.
    return _map_paths(
        storage.read_json(file, what=what), lambda path: str(path if buckets.is_bucket(path) else root / path)
    )


def require_run_settings(workspace: Workspace) -> None:
    """Checks that a run has its settings, without which rows would be read otherwise than before.

    Raises:
        UserError: If it has none.
    """
    if not (workspace.root / SETTINGS_FILE).exists():
        raise UserError(
            f"Expected {SETTINGS_FILE} in {str(workspace.root)!r}, which says where the base is and how rows "
            "are read, got no such file. Fix: copy it from where the run was made, or name the base again, "
            f"as in `elm init {workspace.root!s} --base PATH`."
        )


def base_directory(workspace: Workspace) -> storage.PathLike:
    """Returns where a run's base lies: the one that is remembered, or the run's own."""
    return load_run_settings(workspace)["base"] or workspace.base


@contextmanager
def _lock(workspace: Workspace) -> Generator[None, None, None]:
    """Keeps the settings to one process that changes them; the next one waits."""
    with locks.hold(workspace.lock_file(SETTINGS_FILE), "a change of settings", seconds=60.0):
        storage.remove_unfinished(workspace.root, prefix=f".{SETTINGS_FILE}.")
        yield


def _write(workspace: Workspace, settings: Mapping[str, Any]) -> None:
    """Writes a run's settings, with the paths inside its directory relative to it."""
    root = storage.absolute(workspace.root)

    def shorten(path: storage.PathLike) -> str:
        resolved = storage.absolute(path)
        return str(resolved.relative_to(root) if resolved.is_relative_to(root) else resolved)

    storage.write_json(workspace.root / SETTINGS_FILE, _map_paths(settings, shorten))


def _map_paths(settings: Mapping[str, Any], change: Callable[[storage.PathLike], str]) -> dict[str, Any]:
    """Returns settings with every path changed."""
    source = dict(settings["source"])
    for name in SOURCE_PATHS & source.keys():
        source[name] = None if source[name] is None else change(source[name])
    if "tasks" in source:
        source["tasks"] = [change(file) for file in source["tasks"]]
    base = None if settings["base"] is None else change(settings["base"])
    return {**settings, "base": base, "source": source}
