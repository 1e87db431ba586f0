"""Raw rows: a split of a task's dataset in the templates' columns, before any template is applied."""

from typing import Any

from elm_jax.records import TaskSpec
from elm_jax.tasks import columns, mini, original, sources, subsets
from elm_jax.tasks.data_source import Source, split_of
from elm_jax.tasks.datasets import datasets, training
from elm_jax.tasks.specs import is_embedded


def load_rows(spec: TaskSpec, source: Source) -> list[dict[str, Any]]:
    """Returns the rows of a split as plain Python values by column, with their ids in `row_id`.

    Args:
        spec: The task.
        source: Which split is read, from where, and how many rows of it are taken.

    Raises:
        UserError: If no source of the dataset is available, or if a file or a column is missing.
    """
    split, limit = split_of(spec, source), source.limit
    if is_embedded(spec):
        return mini.rows(spec.dataset, split, seed=source.seed)[:limit]
    dataset = datasets()[spec.dataset]
    switches = original.parse_switches(source.faithful)
    settings = {name: value for name, value in dataset.faithful.items() if name in switches}
    opened = sources.open_split(
        dataset, split, source.data_dir, prompt=spec.prompt, again=settings.get("homonyms")
    )
    if limit is None and dataset.training and split == dataset.split:
        limit = training(dataset, spec.prompt).rows
    if limit is None or "first_rows" in settings:
        numbers = subsets.first(opened.count, opened.count if limit is None else limit)
    else:
        numbers = subsets.shuffled(opened.count, limit, seed=source.seed)
    adapted = columns.adapt(
        opened.take(numbers),
        opened.source.adapter,
        label=dataset.label,
        file=opened.origin,
        columns=[name for name in dataset.columns if name not in opened.source.lacks],
        numbers=numbers,
    )
    numbered = zip(numbers, adapted, strict=True)
    if "dbpedia_labels" in settings:
        numbered = original.shift_classes(numbered, settings["dbpedia_labels"])
    # Rows of files that differ by prompt are other rows for every prompt.
    by_prompt = any("{prompt}" in file for files in opened.source.files.values() for file in files)
    name = f"{dataset.name}/{spec.prompt}/{split}" if by_prompt else f"{dataset.name}/{split}"
    return [{**row, "row_id": f"{name}/{number}"} for number, row in numbered]
