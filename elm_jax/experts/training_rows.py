"""Training rows: the tasks, rows and lengths that an expert was trained on, by its recipe."""

from elm_jax.data import identity, missing_rows, task_rows, task_selection
from elm_jax.data.task_rows import Examples
from elm_jax.errors import UserError
from elm_jax.records import ExpertSpec, TaskSpec
from elm_jax.tasks import data_source


def find_training_tasks(spec: ExpertSpec, source: data_source.Source) -> list[TaskSpec]:
    """Returns the tasks that an expert was trained on: those in its recipe, or the one with its id.

    Raises:
        UserError: If they are not known, as for a merged expert.
    """
    try:
        return [task_selection.resolve_task(task, source) for task in spec.recipe.get("tasks", [spec.id])]
    except UserError as error:
        raise UserError(f"Expected an expert with known training rows, got {spec.id!r}. {error}") from None


def load_training_rows(
    spec: ExpertSpec, source: data_source.Source, most: int | None = None
) -> list[tuple[TaskSpec, Examples]]:
    """Returns the rows of the tasks that an expert was trained on, of the first `most` tasks; default: all.

    Raises:
        UserError: If other rows are there now than those that it was trained on.
    """
    require_training_rows(spec, source)
    return [
        (task, task_rows.load_examples(task, find_training_source(spec, task, source)))
        for task in find_training_tasks(spec, source)[:most]
    ]


def find_training_source(spec: ExpertSpec, task: TaskSpec, source: data_source.Source) -> data_source.Source:
    """Returns where an expert's rows of a task are, with the split, limit, seed and cuts that it notes."""
    noted = identity.from_json(spec.recipe.get(identity.ROW_IDENTITIES_KEY, {}).get(task.id))
    return source if noted is None else identity.restore_source(noted, task, source)


def require_training_rows(spec: ExpertSpec, source: data_source.Source) -> None:
    """Raises a UserError if other rows are there than an expert was trained on, as far as both are known.

    Rows are read only if what they depend on is not what it was.
    """
    changes = describe_changed_rows(spec, source)
    if changes:
        raise UserError(
            f"Expected the rows that {spec.id!r} was trained on, got others: {changes} differ from when this "
            "expert was trained. Fix: put data and template back, or remove the expert with `elm experts "
            "remove` and train it again."
        )


def describe_changed_rows(spec: ExpertSpec, source: data_source.Source) -> str:
    """Returns what differs between the rows that an expert was trained on and those that are there now.

    "" if nothing does, if the expert does not say what its rows were, or if they are not here. Nothing is
    downloaded.
    """
    now = {}
    for name, value in spec.recipe.get(identity.ROW_IDENTITIES_KEY, {}).items():
        noted = identity.from_json(value)
        if noted is None:
            continue
        try:
            task = task_selection.resolve_task(name, source)
            own = find_training_source(spec, task, source)
            if not missing_rows.is_here(task, own):
                continue
            if identity.identify_settings(task, own) != noted.settings:
                now[name] = identity.identify_texts(task, own, task_rows.load_examples(task, own)).to_json()
        except UserError:  # an expert is used without its rows, too
            continue
    return identity.describe_all_changes(spec.recipe, {identity.ROW_IDENTITIES_KEY: now})


def training_lengths(spec: ExpertSpec, default: data_source.Lengths) -> data_source.Lengths:
    """Returns how long an expert's training rows were, or the default if its recipe does not say."""
    recipe = spec.recipe
    return data_source.Lengths(
        recipe.get("max_prompt", default.prompt), recipe.get("max_answer", default.answer)
    )
