"""Aliases: the names that the paper's released files have for datasets and tasks, and our ids of them.

The files write `dataset@prompt`, have several names for a dataset (`glue_mrpc`, `mrpc` and `glue/mrpc`), and
drop the space at a prompt's end. One went through a spreadsheet, which left quotes, backticks and escapes
such as \\u2026 behind.
"""

import re
from collections.abc import Mapping

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.tasks.datasets import Dataset


def resolve_alias(name: str, datasets: Mapping[str, Dataset]) -> str:
    """Returns the id of a task, or the name of a dataset, for any spelling of it.

    >>> from elm_jax.tasks.datasets import all_datasets
    >>> resolve_alias("paws/labeled_final@Rewrite", all_datasets())
    'paws/Rewrite'
    """
    known = list_spellings(datasets)
    if name in known:
        return known[name]
    dataset, at, prompt = name.partition("@")
    if not at:  # an id with some other name of the dataset: the longest that it starts with
        dataset = max((each for each in known if name.startswith(each + "/")), key=len, default="")
        prompt = name[len(dataset) + 1 :]
    if dataset not in known:
        ids = [names.task_id(each.name, prompt) for each in datasets.values() for prompt in each.prompts]
        return names.resolve(name, [*ids, *known], kind="task or dataset", where="the catalogue")
    found = datasets[known[dataset]]
    if prompt in found.prompts:
        return names.task_id(found.name, prompt)
    repaired = {_strip_quotes(each): each for each in found.prompts}
    if _strip_quotes(prompt) not in repaired:
        names.resolve(prompt, found.prompts, kind="prompt", where=f"dataset {found.name!r}")
    return names.task_id(found.name, repaired[_strip_quotes(prompt)])


def list_spellings(datasets: Mapping[str, Dataset]) -> dict[str, str]:
    """Returns our name of a dataset by each of its names.

    These are its own name, its aliases, and the folder of its templates unless another dataset shares it.
    """
    folders = [dataset.templates for dataset in datasets.values()]
    found = {name: name for name in datasets}
    for dataset in datasets.values():
        others = [*dataset.aliases]
        if dataset.templates and folders.count(dataset.templates) == 1:
            others.append(dataset.templates)
        for other in others:
            if found.setdefault(other, dataset.name) != dataset.name:
                raise UserError(
                    f"Expected one dataset of the name {other!r}, got {dataset.name!r} and {found[other]!r}. "
                    "Fix: drop one of the aliases."
                )
    return found


def _strip_quotes(prompt: str) -> str:
    """Returns a prompt's name with its escapes decoded, without the quotes that a spreadsheet adds."""
    read = re.sub(r"\\u([0-9a-fA-F]{4})", lambda escape: chr(int(escape[1], 16)), prompt)
    return read.strip(" '\"`")
