"""Task selection: the tasks that names stand for, and where their prepared rows lie."""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

from etils import epath

from elm_jax import names, storage
from elm_jax.errors import UserError
from elm_jax.records import TaskSpec
from elm_jax.tasks import own, specs, task_templates
from elm_jax.tasks.data_source import Source

Tasks = str | TaskSpec | Iterable[str | TaskSpec]
"""Tasks that a verb works on: specs, or names as `choose` takes them; one or several."""


SEQIO = "seqio"
"""The prompt and group of tasks that were registered with SeqIO by hand, which have none."""


def choose(wanted: Tasks, source: Source | None = None, *, evaluation: bool = False) -> list[TaskSpec]:
    """Returns the tasks that names stand for: a task's id, a dataset (all its prompts) or a group.

    A source's own tasks are known too, and those of SeqIO that it has prepared rows of. A name may also be a
    file that defines tasks: all of these. A spec stands for itself. For `evaluation` a task's split is the
    one that evaluation reads.
    """
    source = source or Source()
    for file in source.tasks:
        own.load(file)
    chosen: dict[str, TaskSpec] = {}
    for each in [wanted] if isinstance(wanted, str | TaskSpec) else wanted:
        if isinstance(each, TaskSpec):
            found = [each]
        else:
            found = own.load(each) if is_task_file(each) else _named(each, source)
        chosen |= {spec.id: spec for spec in found}
    if not chosen:
        raise UserError("At least one task is wanted, but none was named. `elm tasks list` shows them all.")
    if evaluation:
        return [replace(spec, split=spec.evaluation_split or spec.split) for spec in chosen.values()]
    return list(chosen.values())


def find(task: str, source: Source) -> TaskSpec:
    """Returns the task of that id, be it the catalogue's, one's own or SeqIO's."""
    return seqio_prepared(task, source) or specs.find_task(task)


def choices_expression(spec: TaskSpec, source: Source) -> str | None:
    """Returns the jinja that a task's answer choices come from; None where there is none, or no template."""
    if spec.group == SEQIO:
        return None
    return task_templates.template_for(spec, source.templates_dir).answer_choices


def seqio_task(name: str, split: str = "train") -> TaskSpec:
    """Returns what stands for a task that was registered with SeqIO by hand."""
    return TaskSpec(id=names.task_id(name, SEQIO), dataset=name, prompt=SEQIO, group=SEQIO, split=split)


def seqio_prepared(name: str, source: Source) -> TaskSpec | None:
    """Returns a task of SeqIO's, by its name or id, if the source has prepared rows of it."""
    task, _, prompt = name.partition("/")
    if prompt not in ("", SEQIO) or source.prepared is None:
        return None
    spec = seqio_task(task)
    there = sorted(prepared_file(source.prepared, spec, "x").parent.glob("*.safetensors"))
    splits = [names.from_directory_name(file.name.removesuffix(".safetensors")) for file in there]
    if not splits:
        return None
    return spec if spec.split in splits else seqio_task(task, splits[0])


def prepared_file(directory: storage.PathLike, spec: TaskSpec, split: str) -> epath.Path:
    """Returns where a task's prepared rows of one split lie."""
    folder = storage.path(directory) / names.directory_name(spec.dataset) / names.directory_name(spec.prompt)
    return folder / f"{names.directory_name(split)}.safetensors"


def is_task_file(name: str) -> bool:
    """Says whether a name is that of a file which defines tasks."""
    return name.endswith((".yaml", ".yml", ".py"))


def _named(name: str, source: Source) -> list[TaskSpec]:
    known = specs.task_specs()
    found = _meant(name, known)
    if not found:
        with contextlib.suppress(UserError):  # the error below knows more names
            found = _meant(specs.resolve_original(name), known)
    prepared_with_seqio = None if found else seqio_prepared(name, source)
    if prepared_with_seqio:
        return [prepared_with_seqio]
    if not found:
        every = {label for spec in known for label in (spec.id, spec.dataset, spec.group)}
        names.resolve(name, every, kind="task, dataset or group", where="the catalogue")
    return found


def _meant(name: str, known: Sequence[TaskSpec]) -> list[TaskSpec]:
    return [spec for spec in known if name in (spec.id, spec.dataset, spec.group, specs.group_of(spec))]
