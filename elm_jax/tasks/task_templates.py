"""Task templates: the template that renders a task, PromptSource's or the catalogue's."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from elm_jax import names, storage
from elm_jax.errors import UserError
from elm_jax.prompting import promptsource
from elm_jax.prompting.template_files import load_templates
from elm_jax.prompting.templates import Template
from elm_jax.records import TaskSpec
from elm_jax.tasks import mini
from elm_jax.tasks.data_source import Source
from elm_jax.tasks.datasets import Dataset, all_datasets, user_datasets
from elm_jax.tasks.specs import is_mini_task


def find_template(spec: TaskSpec, templates_dir: storage.PathLike | None = None) -> Template:
    """Returns a task's template.

    Args:
        spec: The task.
        templates_dir: Directory of templates laid out as PromptSource's; default: those that `elm prompts
            fetch` downloaded.

    Raises:
        UserError: If there is no template, or if it reads a column that the dataset lacks.
    """
    templates = load_dataset_templates(spec, templates_dir)
    where = f"the templates of {spec.dataset!r}"
    template = templates[names.resolve(spec.prompt, templates, kind="template", where=where)]
    if not is_mini_task(spec):
        require_columns(all_datasets()[spec.dataset], template)
    return template


def load_dataset_templates(
    spec: TaskSpec, templates_dir: storage.PathLike | None = None
) -> Mapping[str, Template]:
    """Returns all templates of a task's dataset by name, whether or not they are tasks."""
    if is_mini_task(spec):
        return load_templates(mini.PROMPTS_DIR, spec.dataset)
    dataset = all_datasets()[spec.dataset]
    is_users = dataset.name in user_datasets()
    inline: dict[str, Any] = {
        prompt: dataset.inline.get(prompt, dataset.template) for prompt in dataset.prompts
    }
    if dataset.template or dataset.inline:
        return {
            prompt: Template(
                name=prompt,
                id=names.task_id(dataset.name, prompt),
                dataset=dataset.name,
                strict=is_users,
                own=is_users,
                foreign=is_users,
                **fields,
            )
            for prompt, fields in inline.items()
        }
    folder = dataset.templates or dataset.name
    own = dataset.directory and find_own_templates(folder, dataset.directory)
    if own:
        return load_templates(own, folder, strict=True)
    directory = promptsource.templates_directory() if templates_dir is None else templates_dir
    if directory is None:
        raise UserError(
            f"Expected PromptSource's templates for {spec.id!r}, got none. Fix: run `elm prompts fetch`, or "
            "give a directory of templates."
        )
    return load_templates(directory, folder, strict=is_users)


def find_own_templates(folder: str, directory: str) -> epath.Path | None:
    """Returns a directory, or `templates` in it, if it has a folder of PromptSource's files; else None."""
    home = storage.path(directory)
    return next(
        (each for each in (home, home / "templates") if (each / folder / "templates.yaml").is_file()), None
    )


def has_template(spec: TaskSpec) -> bool:
    """Returns whether a task's template is available if no directory of templates is given."""
    if is_mini_task(spec):
        return True
    dataset = all_datasets()[spec.dataset]
    own = dataset.directory and find_own_templates(dataset.templates or dataset.name, dataset.directory)
    if dataset.template or dataset.inline or own:
        return True
    return promptsource.templates_directory() is not None


def may_cut_values(spec: TaskSpec) -> bool:
    """Returns whether the values that a task's template writes may be cut; those of whole texts may not."""
    return is_mini_task(spec) or all_datasets()[spec.dataset].template is None


def get_truncate_length(spec: TaskSpec, source: Source) -> int | None:
    """Returns how many characters of a value a task's template writes at most; None if there is no limit."""
    return source.truncate if may_cut_values(spec) else None


def require_columns(dataset: Dataset, template: Template) -> None:
    """Raises if a template reads a column that rows of the dataset lack, or the one that holds our ids."""
    if "row_id" in template.columns:
        raise UserError(
            f"Expected template {template.name!r} of {dataset.name!r} to read columns of the rows, got "
            "'row_id', where rows have the ids that they are given. Fix: rename the column."
        )
    missing = sorted(template.columns - set(dataset.columns))
    if missing and dataset.columns:  # a user's dataset need not name any
        raise UserError(
            f"Expected template {template.name!r} of {dataset.name!r} to read columns among "
            f"{', '.join(map(repr, dataset.columns))}, got {', '.join(map(repr, missing))}. Fix: name the "
            "column in `columns` of the dataset if its sources have it."
        )
