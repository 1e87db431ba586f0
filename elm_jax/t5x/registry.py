"""Registers the tasks that a gin file names with SeqIO, when T5X first asks for them."""

from collections.abc import Sequence
from typing import Any

from elm_jax import names
from elm_jax.records import TaskSpec
from elm_jax.tasks import seqio_tasks, specs, user_tasks
from elm_jax.tasks.data_source import Source
from elm_jax.tasks.seqio_tasks import MULTITASK, SCORE_EVAL


def register_with_seqio(
    name: str,
    vocabulary: Any,
    *,
    tasks: Sequence[str] = (),
    files: Sequence[str] = (),
    source: Source | None = None,
) -> str:
    """Registers a task or a mixture with SeqIO, and returns SeqIO's name of it.

    A name that SeqIO has already, because the gin file imports a module that registers it, is left as it is.

    Args:
        name: A task's id or SeqIO's name of it; a dataset, which is the mixture of its prompts; or
            `elm_multitask`, the mixture of `tasks`. With `_score_eval` at its end it is the twin for rank
            classification.
        vocabulary: SeqIO's, for inputs and targets.
        tasks: Tasks of `elm_multitask`, by id, SeqIO's name, dataset or group.
        files: Files that define tasks of one's own.
        source: Where rows and templates come from, as `register_tasks` takes it.

    Raises:
        UserError: If there is no task or mixture of that name.
    """
    for file in files:
        user_tasks.load_tasks(file)
    known = specs.task_specs()
    seqio_names = seqio_tasks.make_seqio_names(known)
    bare = name.removesuffix(SCORE_EVAL)
    chosen = [spec for each in (tasks or [bare]) for spec in known if each in _spellings(spec, seqio_names)]
    if not chosen and not tasks and _is_registered(name):
        return name
    for each in tasks or [bare]:
        if not any(each in _spellings(spec, seqio_names) for spec in chosen):
            spellings = {other for spec in known for other in _spellings(spec, seqio_names)}
            names.resolve(each, spellings, kind="task or dataset", where="the catalogue or SeqIO's registry")
    made = seqio_tasks.register_tasks(
        list({spec.id: spec for spec in chosen}.values()),
        vocabulary=vocabulary,
        source=source,
        multitask={spec.group for spec in chosen},
    )
    seqio_name = made.tasks.get(bare, bare) + name[len(bare) :]
    return names.resolve(
        seqio_name, _registered_names(made), kind="task or mixture", where="what was registered"
    )


def _spellings(spec: TaskSpec, seqio_names: dict[str, str]) -> tuple[str, ...]:
    """Returns all names by which a task may be chosen."""
    return spec.id, seqio_names[spec.id], spec.dataset, spec.group


def _registered_names(made: seqio_tasks.Registered) -> list[str]:
    ranked = [spec + SCORE_EVAL for spec in made.mixtures]
    return [*made.tasks.values(), *made.ranked.values(), *made.mixtures, *ranked, MULTITASK]


def _is_registered(name: str) -> bool:
    import seqio

    return name in {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
