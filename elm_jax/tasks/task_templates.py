"""Task templates: the template that renders a task, PromptSource's or the catalogue's own."""

from collections.abc import Mapping
from typing import Any

from elm_jax import names, storage
from elm_jax.errors import UserError
from elm_jax.prompting import promptsource
from elm_jax.prompting.templates import Template, load_templates
from elm_jax.records import TaskSpec
from elm_jax.tasks import mini
from elm_jax.tasks.data_source import Source
from elm_jax.tasks.datasets import Dataset, datasets
from elm_jax.tasks.specs import is_embedded


def template_for(spec: TaskSpec, templates_dir: storage.PathLike | None = None) -> Template:
    """Returns a task's template.

    PromptSource's come from `templates_dir`, laid out as PromptSource's own, or else from what `elm prompts
    fetch` brought. Raises `UserError` where neither is there, and where a template reads a column that the
    dataset has not.
    """
    found = templates_of(spec, templates_dir)
    where = f"the templates of {spec.dataset!r}"
    template = found[names.resolve(spec.prompt, found, kind="template", where=where)]
    if not is_embedded(spec):
        check_columns(datasets()[spec.dataset], template)
    return template


def templates_of(spec: TaskSpec, templates_dir: storage.PathLike | None = None) -> Mapping[str, Template]:
    """Returns the templates of a task's dataset by name, among them those that no task is made of."""
    if is_embedded(spec):
        return load_templates(mini.PROMPTS_DIR, spec.dataset)
    dataset = datasets()[spec.dataset]
    written: dict[str, Any] = {
        prompt: dataset.inline.get(prompt, dataset.template) for prompt in dataset.prompts
    }
    if dataset.template or dataset.inline:
        return {
            prompt: Template(
                name=prompt, id=names.task_id(dataset.name, prompt), dataset=dataset.name, **fields
            )
            for prompt, fields in written.items()
        }
    directory = promptsource.templates_directory() if templates_dir is None else templates_dir
    if directory is None:
        raise UserError(
            f"The template of {spec.id!r} is PromptSource's, but no directory of templates was given and "
            "none was fetched. Run `elm prompts fetch`, or give a directory that holds its dataset folders."
        )
    return load_templates(directory, dataset.templates or dataset.name)


def has_template(spec: TaskSpec) -> bool:
    """Tells whether a task's template is at hand when no directory of templates is given."""
    if is_embedded(spec) or datasets()[spec.dataset].template or datasets()[spec.dataset].inline:
        return True
    return promptsource.templates_directory() is not None


def is_truncated(spec: TaskSpec) -> bool:
    """Tells whether the values that a task's template writes may be cut: not those of whole texts."""
    return is_embedded(spec) or datasets()[spec.dataset].template is None


def truncation(spec: TaskSpec, source: Source) -> int | None:
    """Returns how many characters of a value a task's template may write; None if there is no limit."""
    return source.truncate if is_truncated(spec) else None


def check_columns(dataset: Dataset, template: Template) -> None:
    """Refuses a template that reads a column which rows of the dataset do not have."""
    missing = sorted(template.columns - set(dataset.columns))
    if missing and dataset.columns:  # a dataset of one's own need not name any
        raise UserError(
            f"Template {template.name!r} reads {', '.join(map(repr, missing))}, but rows of {dataset.name!r} "
            f"have only these columns: {', '.join(map(repr, dataset.columns))}. Name it in the catalogue's "
            "`columns` if its sources have it."
        )
