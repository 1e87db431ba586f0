"""Specs: every task by name, one a (dataset, prompt) pair.

The paper's tasks are data (`tasks.datasets`). Those of the embedded suite (groups `mini-…`) are made by
`tasks.mini`.
"""

import contextlib

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.records import TaskSpec
from elm_jax.tasks import aliases, mini
from elm_jax.tasks.datasets import datasets


def task_specs(group: str | None = None) -> list[TaskSpec]:
    """Returns the specs of all tasks, one a (dataset, prompt) pair, or those of one group.

    Groups are the paper's ("train", "unseen", "bigbench", …), one's own, and "mini", the embedded suite, or
    either half of it ("mini-train", "mini-unseen"). Raises a UserError for a `group` that does not exist.
    """
    specs = [
        TaskSpec(
            id=names.task_id(dataset.name, prompt),
            dataset=dataset.name,
            prompt=prompt,
            group=dataset.group,
            split=dataset.split,
            evaluation_split=dataset.evaluate,
            config=dataset.config,
            family=dataset.family,
            metric=metric,
        )
        for dataset in datasets().values()
        for prompt, metric in dataset.prompts.items()
    ]
    specs += mini.task_specs()
    if group is None:
        return specs
    groups = dict.fromkeys(name for spec in specs for name in (group_of(spec), spec.group))
    names.resolve(group, groups, kind="group", where="the catalogue")
    return [spec for spec in specs if group in (group_of(spec), spec.group)]


def group_of(spec: TaskSpec) -> str:
    """Returns the group that a task is listed under: that of the embedded suite is one for all of it."""
    return "mini" if is_embedded(spec) else spec.group


def find_task(name: str) -> TaskSpec:
    """Returns the spec of the task whose id `name` is, `dataset/prompt`, or which the original spells so.

    Raises a UserError that tells the nearest names where there is none.
    """
    known = {spec.id: spec for spec in task_specs()}
    if name not in known:
        with contextlib.suppress(UserError):  # the error below knows of the embedded tasks too
            name = resolve_original(name)
    return known[names.resolve(name, known, kind="task", where="the catalogue")]


def spec_of(task: TaskSpec | str) -> TaskSpec:
    """Returns a task's spec, which may be what was given or found by its id."""
    return find_task(task) if isinstance(task, str) else task


def resolve_original(name: str) -> str:
    """Returns the id of a task, or the name of a dataset, as the paper's released files may spell it.

    >>> resolve_original("glue/mrpc@want to know")
    'glue_mrpc/want to know'
    """
    return aliases.resolve(name, datasets())


def is_embedded(spec: TaskSpec) -> bool:
    """Says whether a task is of the embedded suite."""
    return spec.group.startswith("mini")
