"""User prompts: the prompts of a user's dataset, in the file itself or in PromptSource's files beside it."""

import os
import re
from collections.abc import Mapping
from typing import Any

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.prompting import promptsource, sandbox
from elm_jax.prompting.template_files import load_templates
from elm_jax.tasks import task_templates, user_sources
from elm_jax.tasks.datasets import Dataset


def find_number_columns(dataset: Dataset, directory: str) -> list[str]:
    """Returns the columns that a dataset's templates use as numbers, those in a directory of its own too."""
    sources = [made["jinja"] for made in dataset.inline.values()]
    home = dataset.templates and task_templates.find_own_templates(dataset.templates, directory)
    if home:
        sources += [made.jinja for made in load_templates(home, dataset.templates or "").values()]
    found = {column for source in sources for column in sandbox.find_number_columns(source)}
    return sorted(found | ({dataset.label} if dataset.label else set()))


def complete_dataset_fields(
    name: str, entry: Mapping[str, Any], directory: str, where: str
) -> dict[str, Any]:
    """Returns the fields of a user's dataset as the catalogue has them.

    Args:
        name: The dataset.
        entry: Its fields, as the user has them.
        directory: Directory that files and folders of templates are relative to.
        where: The dataset, for errors.

    Raises:
        UserError: If rows or prompts are missing, or if one of them has another form.
    """
    fields = user_sources.take_sources({"family": name, **entry}, directory, where)
    fields.setdefault("split", next(iter(fields["splits"])))
    prompts = fields.get("prompts")
    has_own = isinstance(prompts, Mapping) and any(isinstance(made, Mapping) for made in prompts.values())
    if not has_own and task_templates.find_own_templates(name, directory):
        fields.setdefault("templates", name)
    if "templates" in fields:
        metrics = _find_metrics(prompts, str(fields["templates"]), directory, where)
        return {**fields, "prompts": metrics}
    if not isinstance(prompts, Mapping) or not all(isinstance(made, Mapping) for made in prompts.values()):
        raise UserError(
            f"{where}: expected `prompts`, which map names of prompts to `jinja` and `answer_choices`, got "
            "another value. Fix: correct it, or name a folder of PromptSource's files as `templates`."
        )
    metrics, inline = {}, {}
    for prompt, made in prompts.items():
        if str(prompt) in inline:
            raise UserError(f"{where}: expected a new prompt, got {str(prompt)!r} again. Fix: rename one.")
        texts = dict(made)
        metric = texts.pop("metric", None)
        plain = all(isinstance(text, str | None) for text in texts.values())
        if not plain or set(texts) - {"jinja", "answer_choices"} or not isinstance(texts.get("jinja"), str):
            raise UserError(
                f"{where}, prompt {prompt!r}: expected the texts `jinja`, `answer_choices` and `metric`, got "
                f"{made!r:.200}. Fix: correct the prompt."
            )
        inline[str(prompt)] = texts
        metrics[str(prompt)] = metric or _usual_metric(texts.get("answer_choices"))
    # A label of -1, of a row whose answer is withheld, would select the last choice.
    if any(re.search(r"\{[{%][^}]*\blabel\b", made["jinja"]) for made in inline.values()):
        fields.setdefault("label", "label")
    return {**fields, "prompts": metrics, "inline": inline}


def _find_metrics(prompts: Any, folder: str, directory: str, where: str) -> dict[str, str]:
    """Returns the metric of each prompt of a folder of PromptSource's files; no prompts are all of them."""
    if isinstance(prompts, Mapping) and all(isinstance(metric, str) for metric in prompts.values()):
        return {str(prompt): metric for prompt, metric in prompts.items()}
    if not isinstance(prompts, list | None):
        raise UserError(
            f"{where}: expected `prompts` of `templates` as names, or names with their metrics, got "
            f"{prompts!r:.200}. Fix: correct them, or leave them out to take all."
        )
    home = task_templates.find_own_templates(folder, directory) or promptsource.templates_directory()
    if home is None:
        raise UserError(
            f"{where}: expected templates in {os.path.join(directory, folder)!r}, got none. Fix: put a "
            "templates.yaml there, or name the prompts with their metrics."
        )
    found = load_templates(home, folder)
    return {
        prompt: _usual_metric(
            found[names.resolve(prompt, found, kind="template", where=where)].answer_choices
        )
        for prompt in (found if prompts is None else map(str, prompts))
    }


def _usual_metric(choices: str | None) -> str:
    return "exact_match" if choices is None else "accuracy"
