"""Registers the tasks that a gin file names with SeqIO, when T5X first asks for them."""

from collections.abc import Sequence
from typing import Any

from elm_jax import names, storage
from elm_jax.errors import UserError
from elm_jax.records import TaskSpec
from elm_jax.tasks import seqio_registry, seqio_tasks, specs, user_tasks
from elm_jax.tasks.data_source import Source
from elm_jax.tasks.seqio_tasks import EVALUATION, MULTITASK, SCORE_EVAL


def register_with_seqio(
    name: str,
    vocabulary: Any,
    *,
    tasks: Sequence[str] = (),
    files: Sequence[storage.PathLike] = (),
    module: str | None = None,
    source: Source | None = None,
    split: str | None = None,
) -> str:
    """Registers a task or a mixture with SeqIO, and returns SeqIO's name of it.

    A name that SeqIO has already, because a module registered it, is left as it is, and may be among `tasks`.

    Args:
        name: A task's id or SeqIO's name of it; a dataset or a group, which is the mixture of its tasks; or
            `elm_multitask`, the mixture of `tasks`. With `_score_eval` at its end it is the twin for rank
            classification, of those tasks that have answer choices.
        vocabulary: SeqIO's, for inputs and targets.
        tasks: Tasks of `elm_multitask`, by id, SeqIO's name, dataset or group.
        files: Files that define tasks of one's own.
        module: A module that registers tasks with SeqIO, imported first.
        source: Where rows and templates come from, as `register_tasks` takes it.
        split: A split that every task has to have, since SeqIO passes over those without.

    Raises:
        UserError: If there is no task or mixture of that name, or another module's is in the way.
    """
    if module:
        user_tasks.import_user_module(module)
    load_task_files(files)
    if seqio_registry.find_registered(name) is None:
        name = _register(name, vocabulary, tasks, source)
    if split is not None:
        _require_split(name, split)
    return name


def find_specs(name: str, files: Sequence[storage.PathLike] = ()) -> list[TaskSpec]:
    """Returns our tasks of a name: an id, SeqIO's name, a dataset or a group; none if it is not ours."""
    load_task_files(files)
    known = specs.task_specs()
    seqio_names = seqio_tasks.make_seqio_names(known)
    return [spec for spec in known if name in _spellings(spec, seqio_names)]


def load_task_files(files: Sequence[storage.PathLike]) -> None:
    """Adds the tasks of files to this process."""
    for file in files:
        user_tasks.load_tasks(file)


def _register(name: str, vocabulary: Any, tasks: Sequence[str], source: Source | None) -> str:
    known = specs.task_specs()
    seqio_names = seqio_tasks.make_seqio_names(known)
    bare = name.removesuffix(SCORE_EVAL)
    ranked = name != bare
    if bare == MULTITASK and not tasks:
        raise UserError(f"Expected tasks of {MULTITASK!r}, got none. Fix: give --gin.TASKS.")
    theirs, chosen = [], {}
    for each in tasks or [bare]:
        if not _is_foreign(each):
            found = [spec for spec in known if each in _spellings(spec, seqio_names)]
            if not found:
                spellings = {other for spec in known for other in _spellings(spec, seqio_names)}
                where = "the catalogue or SeqIO's registry"
                names.resolve(each, spellings, kind="task or dataset", where=where)
            chosen |= {spec.id: spec for spec in found}
        else:
            theirs.append(each + SCORE_EVAL if ranked and _is_foreign(each + SCORE_EVAL) else each)
    own = list(chosen.values())
    made = seqio_tasks.register_tasks(own, vocabulary=vocabulary, source=source, multitask=())
    rates = [(made.ranked[task], 1.0) for task in chosen if task in made.ranked]
    if not ranked:
        rates = [(made.tasks[spec.id], seqio_tasks.get_t0_rate(spec)) for spec in own]
    groups = {group for spec in own for group in (spec.group, specs.get_listed_group(spec))}
    if bare == MULTITASK or (bare in groups and bare not in made.mixtures):
        rates += [(each, 1.0 if ranked else _count_rate(each)) for each in theirs]
        if not rates:
            raise UserError(
                f"Expected tasks with answer choices for {name!r}, got none. Fix: name other tasks, or leave "
                f"{SCORE_EVAL} out."
            )
        seqio_registry.add_mixture(name, rates)
        return name
    twins = [task + SCORE_EVAL for task in made.mixtures]
    there = [*made.tasks.values(), *made.ranked.values(), *made.mixtures, *twins]
    wanted = made.tasks.get(bare, bare) + name[len(bare) :]
    return names.resolve(wanted, there, kind="task or mixture", where="what was registered")


def _spellings(spec: TaskSpec, seqio_names: dict[str, str]) -> tuple[str, ...]:
    """Returns all names by which a task may be chosen."""
    return spec.id, seqio_names[spec.id], spec.dataset, spec.group, specs.get_listed_group(spec)


def _is_foreign(name: str) -> bool:
    there = seqio_registry.find_registered(name)
    return there is not None and not seqio_registry.is_ours(there)


def _count_rate(name: str) -> float:
    """Returns the rate of a task or mixture that is not ours: its rows, up to T0's limit."""
    import seqio

    found = seqio_registry.find_registered(name)
    counts = [
        task.num_input_examples("train") for task in seqio.get_subtasks(found) if "train" in task.splits
    ]
    known = [count for count in counts if count is not None]
    return seqio_tasks.compute_t0_rate(sum(known) if len(known) == len(counts) else None, 1)


def _require_split(name: str, split: str) -> None:
    import seqio

    for task in seqio.get_subtasks(seqio_registry.find_registered(name)):
        if split not in task.splits:
            others = ", ".join(each for each in task.splits if each != EVALUATION)
            raise UserError(
                f"Expected a split {split!r} of {task.name!r}, got {others}. Fix: give SPLIT, or leave that "
                "task out."
            )
