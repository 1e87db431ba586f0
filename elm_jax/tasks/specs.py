"""Specs: every known task by name.

A task is one (dataset, prompt) pair. The paper's tasks are data (`tasks.datasets`); those of the embedded
suite (groups `mini-…`) are code (`tasks.mini`).
"""

import contextlib

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.frames import Records
from elm_jax.records import TaskSpec
from elm_jax.tasks import aliases, mini
from elm_jax.tasks.datasets import all_datasets


def task_specs(group: str | None = None) -> Records[TaskSpec]:
    """Returns the specs of all known tasks, or of one group.

    Args:
        group: One of the paper's groups ("train", "unseen", "bigbench", …), a user's group, "mini" for the
            embedded suite, or "mini-train" or "mini-unseen" for half of it; default: all.

    Raises:
        UserError: If there is no such group.
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
        for dataset in all_datasets().values()
        for prompt, metric in dataset.prompts.items()
    ]
    specs += mini.task_specs()
    if group is None:
        return Records(specs)
    groups = dict.fromkeys(name for spec in specs for name in (get_listed_group(spec), spec.group))
    names.resolve(group, groups, kind="group", where="the catalogue")
    return Records(spec for spec in specs if group in (get_listed_group(spec), spec.group))


def get_listed_group(spec: TaskSpec) -> str:
    """Returns the group that a task is listed under: "mini" for the whole embedded suite."""
    return "mini" if is_mini_task(spec) else spec.group


def find_task(name: str) -> TaskSpec:
    """Returns the spec of a task.

    Args:
        name: The task's id, `dataset/prompt`, or its name in the paper's released files.

    Raises:
        UserError: If there is no such task; the message has the nearest names.
    """
    known = {spec.id: spec for spec in task_specs()}
    if name not in known:
        with contextlib.suppress(UserError):  # the error below knows of the embedded tasks too
            name = resolve_original_name(name)
    return known[names.resolve(name, known, kind="task", where="the catalogue")]


def get_spec(task: TaskSpec | str) -> TaskSpec:
    """Returns the spec of a task that is given as a spec or an id."""
    return find_task(task) if isinstance(task, str) else task


def resolve_original_name(name: str) -> str:
    """Returns the id of a task, or the name of a dataset, for its name in the paper's released files.

    >>> resolve_original_name("glue/mrpc@want to know")
    'glue_mrpc/want to know'
    """
    return aliases.resolve_alias(name, all_datasets())


def is_mini_task(spec: TaskSpec) -> bool:
    """Returns whether a task is of the embedded suite."""
    return spec.group.startswith("mini")


def is_ranked(spec: TaskSpec) -> bool:
    """Returns whether a task's answer choices are ranked, so that a target has to be one of them."""
    dataset = all_datasets().get(spec.dataset)
    return spec.metric == "accuracy" and not (dataset and spec.prompt in dataset.unranked)
