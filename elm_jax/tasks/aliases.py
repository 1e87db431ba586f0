"""Aliases: what the paper's released files call a dataset or a task, and the one id that it has here.

They write `dataset@prompt` with one of several names for a dataset (`glue_mrpc`, `mrpc` and `glue/mrpc` are
one), drop the space at a prompt's end, and one of them went through a spreadsheet, which left quotes,
backticks and escapes such as \\u2026 behind.
"""

import re
from collections.abc import Mapping

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.tasks.datasets import Dataset


def resolve(name: str, datasets: Mapping[str, Dataset]) -> str:
    """Returns the id of a task, or the name of a dataset, by any spelling of it.

    >>> resolve("paws/labeled_final@Rewrite", catalogue)  # doctest: +SKIP
    'paws/Rewrite'
    """
    known = spellings(datasets)
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
    repaired = {_bare(each): each for each in found.prompts}
    if _bare(prompt) not in repaired:
        names.resolve(prompt, found.prompts, kind="prompt", where=f"dataset {found.name!r}")
    return names.task_id(found.name, repaired[_bare(prompt)])


def spellings(datasets: Mapping[str, Dataset]) -> dict[str, str]:
    """Returns every name of every dataset with the one that it has here.

    Beside its own name and aliases that is the folder of its templates, where no other dataset shares it.
    """
    folders = [dataset.templates for dataset in datasets.values()]
    found = {name: name for name in datasets}
    for dataset in datasets.values():
        others = [*dataset.aliases]
        if dataset.templates and folders.count(dataset.templates) == 1:
            others.append(dataset.templates)
        for other in others:
            if found.setdefault(other, dataset.name) != dataset.name:
                raise UserError(f"{other!r} is a name of {dataset.name!r} and of {found[other]!r}. Drop one.")
    return found


def _bare(prompt: str) -> str:
    """Returns a prompt's name with escapes read and without what a spreadsheet puts around it."""
    read = re.sub(r"\\u([0-9a-fA-F]{4})", lambda escape: chr(int(escape[1], 16)), prompt)
    return read.strip(" '\"`")
