"""Registers the tasks that a gin file names with SeqIO, when T5X first asks for them."""

from collections.abc import Sequence
from typing import Any

from elm_jax import names, storage
from elm_jax.errors import UserError
from elm_jax.records import TaskSpec
from elm_jax.tasks import seqio_registry, seqio_tasks, specs, task_templates, user_tasks
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
        UserError: If there is no task or mixture of that name, or another module's is in the way or has
            another vocabulary.
    """
    if module:
        user_tasks.import_user_module(module)
    load_task_files(files)
    if seqio_registry.find_registered(name) is None:
        name = _register(name, vocabulary, tasks, source)
    _require_vocabulary(name, vocabulary)
    if split is not None:
        _require_split(name, split)
    return name


def find_specs(name: str, files: Sequence[storage.PathLike] = ()) -> list[TaskSpec]:
    """Returns our tasks of a name: an id, SeqIO's name, a dataset or a group; none if it is not ours."""
    load_task_files(files)
    known = specs.task_specs()
    seqio_names = seqio_tasks.make_seqio_names(known)
    return [spec for spec in known if name in _accepted_names(spec, seqio_names)]


def require_specs(
    name: str,
    *,
    tasks: Sequence[str] = (),
    files: Sequence[storage.PathLike] = (),
    source: Source | None = None,
    split: str | None = None,
) -> None:
    """Refuses names that are not ours, a split that they lack and templates that are not there.

    SeqIO is not imported, so that this is for runs without a module that registers more with it.

    Args:
        name: As `register_with_seqio` takes it, and so the next four.
        tasks: Tasks of `elm_multitask`.
        files: Files that define tasks of one's own.
        source: Where templates come from.
        split: A split that every task has to have.

    Raises:
        UserError: If a name is of no task, or a task lacks the split or its template.
    """
    load_task_files(files)
    bare = name.removesuffix(SCORE_EVAL)
    if bare == MULTITASK and not tasks:
        raise UserError(f"Expected tasks of {MULTITASK!r}, got none. Fix: give --gin.TASKS.")
    known = specs.task_specs()
    seqio_names = seqio_tasks.make_seqio_names(known)
    read = set()
    for spec in {
        spec.id: spec for each in tasks or [bare] for spec in _choose(each, known, seqio_names)
    }.values():
        if split is not None:
            splits = [*seqio_tasks.count_split_rows(spec), EVALUATION]
            names.resolve(split, splits, kind="split", where=f"the task {spec.id!r}")
        if spec.dataset not in read:  # parsing a folder's templates takes time
            read.add(spec.dataset)
            task_templates.find_template(spec, source.templates_dir if source else None)


def load_task_files(files: Sequence[storage.PathLike]) -> None:
    """Adds the tasks of files to this process."""
    for file in [files] if isinstance(files, str) else files:
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
            chosen |= {spec.id: spec for spec in _choose(each, known, seqio_names)}
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


def _choose(name: str, known: Sequence[TaskSpec], seqio_names: dict[str, str]) -> list[TaskSpec]:
    """Returns our tasks of a name; raises if there are none."""
    found = [spec for spec in known if name in _accepted_names(spec, seqio_names)]
    if not found:
        spellings = {other for spec in known for other in _accepted_names(spec, seqio_names)}
        names.resolve(name, spellings, kind="task or dataset", where="the catalogue or SeqIO's registry")
    return found


def _accepted_names(spec: TaskSpec, seqio_names: dict[str, str]) -> tuple[str, ...]:
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


def _require_vocabulary(name: str, vocabulary: Any) -> None:
    """Refuses what a module registered with another vocabulary, or the same by another path, as T5X does."""
    for feature, about in seqio_registry.find_registered(name).output_features.items():
        if feature in ("inputs", "targets") and about.vocabulary != vocabulary:
            raise UserError(
                f"Expected the {feature} of {name!r} to have the vocabulary {vocabulary}, got "
                f"{about.vocabulary}. Fix: name the same file by the same path, with as many sentinels, in "
                "its module and as VOCABULARY_FILE and EXTRA_IDS."
            )


def _require_split(name: str, split: str) -> None:
    import seqio

    for task in seqio.get_subtasks(seqio_registry.find_registered(name)):
        if split not in task.splits:
            others = ", ".join(each for each in task.splits if each != EVALUATION)
            raise UserError(
                f"Expected a split {split!r} of {task.name!r}, got {others}. Fix: give SPLIT, or leave that "
                "task out."
            )
