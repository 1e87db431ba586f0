"""A task's own expert: the one that was trained on the task, for evaluations of what experts have seen."""

from collections.abc import Sequence

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.experts.library import Library
from elm_jax.records import ExpertSpec, TaskSpec

OWN = "own"
KINDS = ("prompt", "dataset")
"""What an own expert may be of: the task's prompt, or all prompts of its dataset."""


def find_own_expert(library: Library, experts: Sequence[str], task: TaskSpec, of: str) -> str:
    """Returns the id of the expert that was trained on a task.

    Args:
        library: The experts.
        experts: The ids to choose among.
        task: The task.
        of: "prompt" for the expert of this very prompt, "dataset" for that of the task's whole dataset.

    Raises:
        UserError: If there is none, or if `of` is neither.
    """
    names.resolve(of, KINDS, kind="own expert", where="the option of of router 'own'")
    for expert in experts:
        spec = library.spec(expert)
        if spec.datasets == (task.dataset,) and _matches(spec, task.id, of):
            return expert
    wanted = task.id if of == "prompt" else task.dataset
    raise UserError(
        f"Expected an expert trained on {wanted!r}, got none among "
        f"{len(experts)}. Fix: train it with `elm train`, or leave the task out."
    )


def _matches(spec: ExpertSpec, task: str, of: str) -> bool:
    trained = list(spec.recipe.get("tasks", [spec.id]))
    return trained == [task] if of == "prompt" else len(trained) > 1
