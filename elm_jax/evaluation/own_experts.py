"""Tasks' own experts: those that were trained on the tasks, for evaluations of what experts have seen."""

from collections.abc import Mapping, Sequence

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.experts.library import Library
from elm_jax.records import TaskSpec
from elm_jax.training.expert_configs import ALL_PROMPTS

OWN_EXPERT_KINDS = ("prompt", "dataset")
"""What an own expert may be of: the task's prompt, or all prompts of its dataset."""


def find_own_experts(
    library: Library, experts: Sequence[str], tasks: Sequence[TaskSpec], of: str
) -> Mapping[str, str]:
    """Returns for each task the id of the expert that was trained on it; each expert is looked at once.

    Args:
        library: The experts.
        experts: The ids to choose among; of several that were trained alike the first is taken.
        tasks: The tasks.
        of: "prompt" for the expert of this very prompt, "dataset" for that of the task's whole dataset.

    Raises:
        UserError: If there is none for a task, or if `of` is neither.
    """
    names.resolve(of, OWN_EXPERT_KINDS, kind="own expert", where="the option `of` of router 'own'")
    by_target: dict[str, str] = {}
    for expert in experts:
        spec = library.spec(expert)
        trained = list(spec.recipe.get("tasks", [spec.id]))
        # A dataset of one prompt has an expert of its own too, which was trained on one task.
        of_dataset = len(trained) > 1 or names.split_id(spec.id)[1] == ALL_PROMPTS
        if len(spec.datasets) == 1 and (of_dataset if of == "dataset" else len(trained) == 1):
            by_target.setdefault(trained[0] if of == "prompt" else spec.datasets[0], expert)
    targets = {task.id: task.id if of == "prompt" else task.dataset for task in tasks}
    lacking = [target for target in targets.values() if target not in by_target]
    if lacking:
        raise UserError(
            f"Expected an expert trained on {lacking[0]!r}, got none among {len(experts)}. Fix: train it "
            "with `elm train`, or leave the task out."
        )
    return {task: by_target[target] for task, target in targets.items()}
