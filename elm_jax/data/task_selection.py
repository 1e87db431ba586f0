"""Task selection: the tasks that names stand for, and the files of their prepared rows."""

import contextlib
from collections.abc import Iterable
from dataclasses import replace

from etils import epath

from elm_jax import names, storage
from elm_jax.errors import UserError
from elm_jax.records import TaskSpec
from elm_jax.tasks import specs, task_templates, user_tasks
from elm_jax.tasks.data_source import Source

Tasks = str | TaskSpec | Iterable[str | TaskSpec]
"""One or several tasks: specs, or names as `select_tasks` takes them."""


_SpecsByName = dict[str, list[TaskSpec]]

SEQIO = "seqio"
"""The prompt and group of tasks that a user registered with SeqIO, which have none of their own."""


def select_tasks(tasks: Tasks, source: Source | None = None, *, evaluation: bool = False) -> list[TaskSpec]:
    """Returns the specs of tasks that are named.

    Args:
        tasks: Specs or names: ids of tasks, datasets (all their prompts), groups, or files that define tasks.
        source: Its files of tasks, and SeqIO's tasks that it has prepared rows of, are known too.
        evaluation: Whether the specs name the split that evaluation reads, not the one that training reads.

    Raises:
        UserError: If no task is named, or if a name is unknown.
    """
    source = source or Source()
    for file in source.tasks:
        user_tasks.load_tasks(file)
    chosen: dict[str, TaskSpec] = {}
    known: _SpecsByName | None = None
    for task in [tasks] if isinstance(tasks, str | TaskSpec) else tasks:
        if isinstance(task, TaskSpec):
            found = [task]
        elif not isinstance(task, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UserError(
                f"Expected a task by name or spec, got {type(task).__name__}. Fix: define a task of your "
                "rows, `define_task(name, rows=rows, prompts=prompts)`, and name that."
            )
        elif is_task_file(task):
            found, known = user_tasks.load_tasks(task), None
        else:
            known = _index_specs_by_name() if known is None else known
            found = _find_by_name(task, known, source)
        chosen |= {spec.id: spec for spec in found}
    if not chosen:
        raise UserError(
            "Expected at least one task, got none. Fix: name one; `elm tasks list` shows them all."
        )
    if evaluation:
        return [replace(spec, split=spec.evaluation_split or spec.split) for spec in chosen.values()]
    return list(chosen.values())


def is_named_only_by_group(tasks: Tasks, spec: TaskSpec) -> bool:
    """Returns whether a task is among those that are named only as a part of a group."""
    named = [tasks] if isinstance(tasks, str | TaskSpec) else list(tasks)
    own = {spec.id, spec.dataset}
    groups = {spec.group, specs.get_listed_group(spec)} - own
    texts = {task for task in named if isinstance(task, str)}
    return bool(groups & texts) and not own & texts


def resolve_task(task: str, source: Source) -> TaskSpec:
    """Returns the spec of an id of the catalogue, of the user's files or of SeqIO's prepared tasks."""
    return find_prepared_seqio_task(task, source) or specs.find_task(task)


def get_choices_expression(spec: TaskSpec, source: Source) -> str | None:
    """Returns the jinja of a task's answer choices; None if it has no choices or no template."""
    if spec.group == SEQIO:
        return None
    return task_templates.find_template(spec, source.templates_dir).answer_choices


def make_seqio_spec(name: str, split: str = "train") -> TaskSpec:
    """Returns the spec of a task that a user registered with SeqIO."""
    return TaskSpec(id=names.task_id(name, SEQIO), dataset=name, prompt=SEQIO, group=SEQIO, split=split)


def find_prepared_seqio_task(name: str, source: Source) -> TaskSpec | None:
    """Returns the spec of SeqIO's task of a name or id if the source has prepared rows of it, else None."""
    task, _, prompt = name.partition("/")
    if prompt not in ("", SEQIO) or source.prepared is None:
        return None
    spec = make_seqio_spec(task)
    files = sorted(prepared_file(source.prepared, spec, "x").parent.glob("*.safetensors"))
    splits = [names.from_directory_name(file.name.removesuffix(".safetensors")) for file in files]
    if not splits:
        return None
    return spec if spec.split in splits else make_seqio_spec(task, splits[0])


def prepared_file(directory: storage.PathLike, spec: TaskSpec, split: str) -> epath.Path:
    """Returns the file of a task's prepared rows of one split."""
    folder = storage.path(directory) / names.directory_name(spec.dataset) / names.directory_name(spec.prompt)
    return folder / f"{names.directory_name(split)}.safetensors"


def is_task_file(name: str) -> bool:
    """Returns whether a name is that of a file that defines tasks."""
    return name.endswith((".yaml", ".yml", ".py"))


def _find_by_name(name: str, known: _SpecsByName, source: Source) -> list[TaskSpec]:
    found = known.get(name, [])
    if not found:
        with contextlib.suppress(UserError):  # the error below knows more names
            found = known.get(specs.resolve_original_name(name), [])
    seqio_task = None if found else find_prepared_seqio_task(name, source)
    if seqio_task:
        return [seqio_task]
    if not found:
        names.resolve(name, sorted(known), kind="task, dataset or group", where="the catalogue")
    return found


def _index_specs_by_name() -> _SpecsByName:
    """Returns the specs of all tasks by every name that stands for them, in their order."""
    known: _SpecsByName = {}
    for spec in specs.task_specs():
        for label in {spec.id, spec.dataset, spec.group, specs.get_listed_group(spec)}:
            known.setdefault(label, []).append(spec)
    return known
