"""Registry: the tasks that a gin file names, put into SeqIO's registry when T5X first asks for them."""

from collections.abc import Sequence
from typing import Any

from elm_jax import names
from elm_jax.records import TaskSpec
from elm_jax.tasks import own, seqio_tasks, specs
from elm_jax.tasks.data_source import Source
from elm_jax.tasks.seqio_tasks import MULTITASK, SCORE_EVAL


def registered(
    name: str,
    vocabulary: Any,
    *,
    tasks: Sequence[str] = (),
    files: Sequence[str] = (),
    source: Source | None = None,
) -> str:
    """Registers what a name stands for with SeqIO, and returns what SeqIO calls it.

    The name is a task's id or SeqIO's name for it, or a dataset, which is the mixture of its prompts; with
    `_score_eval` at its end, the twin for rank classification. `elm_multitask` is the mixture of `tasks`,
    which are named likewise, or by group. A name that SeqIO has already, because the gin file imports a
    module that registers it, stays as it is. `files` define tasks of one's own; the `source` is
    as `register_tasks` takes it.

    Raises a UserError for a name that nothing has.
    """
    for file in files:
        own.load(file)
    known = specs.task_specs()
    called = seqio_tasks.seqio_names(known)
    bare = name.removesuffix(SCORE_EVAL)
    wanted = [spec for each in (tasks or [bare]) for spec in known if each in _names_of(spec, called)]
    if not wanted and not tasks and _is_registered(name):
        return name
    for each in tasks or [bare]:
        if not any(each in _names_of(spec, called) for spec in wanted):
            every = {other for spec in known for other in _names_of(spec, called)}
            names.resolve(each, every, kind="task or dataset", where="the catalogue or SeqIO's registry")
    made = seqio_tasks.register_tasks(
        list({spec.id: spec for spec in wanted}.values()),
        vocabulary=vocabulary,
        source=source,
        multitask={spec.group for spec in wanted},
    )
    found = made.tasks.get(bare, bare) + name[len(bare) :]
    return names.resolve(found, _registered(made), kind="task or mixture", where="what was registered")


def _names_of(spec: TaskSpec, called: dict[str, str]) -> tuple[str, ...]:
    return spec.id, called[spec.id], spec.dataset, spec.group


def _registered(made: seqio_tasks.Registered) -> list[str]:
    ranked = [spec + SCORE_EVAL for spec in made.mixtures]
    return [*made.tasks.values(), *made.ranked.values(), *made.mixtures, *ranked, MULTITASK]


def _is_registered(name: str) -> bool:
    import seqio

    return name in {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
