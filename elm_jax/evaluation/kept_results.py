"""Kept results: what methods chose and the report of it, read if nothing that they are made of has changed.

Scores are kept cell by cell (`results_cache`). To print a finished evaluation it would still be necessary to
ask every router again and to compute every table; so both are kept too, each with a key that stands for all
that goes into it: tasks and their rows, methods, the experts with their keys, the base, and the version.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from etils import epath

from elm_jax import schema, storage
from elm_jax.data import task_selection
from elm_jax.errors import UserError
from elm_jax.evaluation import candidates, results_cache, scorer_selection
from elm_jax.evaluation.config import EvaluationConfig
from elm_jax.evaluation.methods import EvaluationMethod
from elm_jax.evaluation.scorer_selection import ScorerSelection
from elm_jax.evaluation.tasks import EvaluationTask
from elm_jax.experts.library import Library
from elm_jax.reporting import report_files
from elm_jax.reporting.records import Report
from elm_jax.session.workspace import Run

MADE_FROM_FILE = "made_from.json"


@dataclass(frozen=True)
class _MadeFromForm(schema.FileForm):
    key: schema.Text
    files: Mapping[str, str]


def selection_cache_key(
    run: Run,
    tasks: Mapping[str, EvaluationTask],
    methods: Sequence[EvaluationMethod],
    experts: Sequence[str],
    config: EvaluationConfig,
) -> str | None:
    """Returns what stands for everything that choices depend on; None if some are made of other rows too."""
    if any(method.labels == "few" or candidates.get_key_settings(method.options) for method in methods):
        return None
    library, source = Library(run.workspace.library), run.source
    parts = {
        "version": version("elm_jax"),
        "settings": results_cache.reading_settings(run),
        "vocabulary": run.tokenizer.fingerprint,
        "seed": source.seed,
        "limit": source.limit,
        "files": {str(file): storage.file_fingerprint(file) for file in source.tasks},
        "methods": [asdict(method) for method in methods],
        "config": [config.queries, config.seen],
        "tasks": {name: _identify(task, run) for name, task in tasks.items()},
        "experts": {expert: library.fingerprint(expert) for expert in experts},
        "multitask": scorer_selection.multitask_experts(run),
    }
    return storage.fingerprint(parts)


def load_selection(run: Run, key: str | None) -> ScorerSelection | None:
    """Returns the choices that were kept under a key, if all that is merged for them is still there."""
    with suppress(UserError):
        if key is not None and scorer_selection.load_key(run.workspace) == key:
            selection = scorer_selection.load_selection(run.workspace)
            if selection.composites.keys() <= set(Library(run.workspace.composites).ids()):
                return selection
    return None


def report_key(key: str | None, told: Mapping[str, Any]) -> str | None:
    """Returns what stands for everything that a report depends on, beside choices with that key."""
    return None if key is None else storage.fingerprint([key, dict(told)])


def save_report_key(directory: epath.Path, key: str | None) -> None:
    """Notes what a report was made from, now that it is written."""
    if key is not None:
        files = {file.name: storage.file_fingerprint(file) for file in _report_files(directory)}
        storage.write_json(directory / MADE_FROM_FILE, {"key": key, "files": files})


def load_report(directory: epath.Path, key: str | None) -> tuple[Report, dict[str, epath.Path]] | None:
    """Returns the report that was made from what a key stands for, and its files, if they are as written."""
    where = directory / MADE_FROM_FILE
    with suppress(UserError):
        told = schema.read(where, _MadeFromForm, what="What a report was made from", fix="evaluate again")
        found = {file.name: storage.file_fingerprint(file) for file in _report_files(directory)}
        if key == told.key and found == told.files:
            paths = {file.suffix[1:]: file for file in _report_files(directory) if file.stem == "report"}
            return report_files.read_report(directory), paths
    return None


def _report_files(directory: epath.Path) -> list[epath.Path]:
    files = sorted(directory.iterdir()) if directory.is_dir() else []
    return [file for file in files if file.name != MADE_FROM_FILE and not file.name.startswith(".")]


def _identify(task: EvaluationTask, run: Run) -> str:
    choices = task_selection.get_choices_expression(task.spec, run.source)
    return storage.fingerprint([asdict(task.spec), choices, task.identity.to_json(), task.row_ids()])
