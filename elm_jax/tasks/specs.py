"""Specs: every task by name, and the one door to its rows, its template and its prompted examples.

The paper's tasks are data (`catalogue/*.yaml`); their rows and templates are read from directories that the
caller gives. The embedded suite's (groups `mini-…`) are made by `mini` and need none.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from elm_jax import names, storage
from elm_jax.errors import UserError
from elm_jax.prompting.render import Renderings, render
from elm_jax.prompting.templates import TRUNCATE, Template, load_templates
from elm_jax.records import TaskSpec
from elm_jax.tasks import columns, mini, sources

CATALOGUE = Path(__file__).parent / "catalogue"


@dataclass(frozen=True)
class Dataset:
    """One dataset of the catalogue; `catalogue/paper.yaml` says what the fields mean."""

    name: str
    group: str
    family: str
    templates: str
    split: str
    reader: str
    files: Mapping[str, str]  # split -> file below the data directory
    prompts: Mapping[str, str]  # prompt -> metric
    config: str | None = None
    adapter: str = "unchanged"
    label: str | None = None


@functools.cache
def datasets() -> Mapping[str, Dataset]:
    """Returns the catalogue's datasets by name."""
    found = {}
    for file in sorted(CATALOGUE.glob("*.yaml")):
        for name, fields in yaml.safe_load(file.read_text("utf-8")).items():
            found[name] = Dataset(name=name, **fields)
    return found


def task_specs(group: str | None = None) -> list[TaskSpec]:
    """Returns all tasks, one a (dataset, prompt) pair, or those of one group."""
    specs = [
        TaskSpec(
            id=names.task_id(dataset.name, prompt),
            dataset=dataset.name,
            prompt=prompt,
            group=dataset.group,
            split=dataset.split,
            config=dataset.config,
            family=dataset.family,
            metric=metric,
        )
        for dataset in datasets().values()
        for prompt, metric in dataset.prompts.items()
    ]
    specs += mini.task_specs()
    if group is None:
        return specs
    names.resolve(group, dict.fromkeys(spec.group for spec in specs), kind="group", where="the catalogue")
    return [spec for spec in specs if spec.group == group]


def find_task(name: str) -> TaskSpec:
    """Returns the task of that id; an unknown one raises `UserError` with the nearest."""
    known = {spec.id: spec for spec in task_specs()}
    return known[names.resolve(name, known, kind="task", where="the catalogue")]


def load_rows(
    spec: TaskSpec, split: str, data_dir: storage.PathLike | None = None, *, seed: int = 42
) -> list[dict[str, Any]]:
    """Returns a split's rows in the templates' columns and plain Python values, with their ids in `row_id`.

    The paper's datasets are read below `data_dir`; an embedded one is made from `seed`.
    """
    if _is_embedded(spec):
        return mini.rows(spec.dataset, split, seed=seed)
    dataset = datasets()[spec.dataset]
    split = names.resolve(split, dataset.files, kind="split", where=f"dataset {dataset.name!r}")
    remedy = f"Place {dataset.files[split]!r} in a directory and give it as the data directory."
    if data_dir is None:
        raise UserError(f"Rows of {dataset.name!r} are wanted, but no data directory was given. {remedy}")
    root = storage.existing_directory(data_dir, what="A directory of datasets", remedy=remedy)
    file = root / dataset.files[split]
    if not file.is_file():
        there = [name for name, other in dataset.files.items() if (root / other).is_file()]
        have = f"The splits there are: {', '.join(there)}." if there else remedy
        raise UserError(
            f"The {split} split of {dataset.name!r} is wanted at {str(file)!r}, but no file is there. {have}"
        )
    rows = columns.adapt(
        sources.READERS[dataset.reader](file), dataset.adapter, label=dataset.label, file=str(file)
    )
    return [{**row, "row_id": f"{dataset.name}/{split}/{number}"} for number, row in enumerate(rows)]


def template_for(spec: TaskSpec, templates_dir: storage.PathLike | None = None) -> Template:
    """Returns a task's template, from `templates_dir` (laid out as PromptSource's) unless it is embedded."""
    if _is_embedded(spec):
        directory, folder = mini.PROMPTS_DIR, spec.dataset
    else:
        directory, folder = templates_dir, datasets()[spec.dataset].templates
    if directory is None:
        raise UserError(
            f"The template of {spec.id!r} is PromptSource's, but no directory of templates was given. "
            "Give one that holds its dataset folders."
        )
    found = load_templates(directory, folder)
    return found[names.resolve(spec.prompt, found, kind="template", where=f"{folder!r} of {directory}")]


def examples(
    spec: TaskSpec,
    split: str,
    *,
    data_dir: storage.PathLike | None = None,
    templates_dir: storage.PathLike | None = None,
    seed: int = 42,
    truncate: int | None = TRUNCATE,
    keep_empty: bool = False,
) -> Renderings:
    """Returns a task's prompted examples of one split: its rows through its template.

    Raises `UserError` where a directory, file or column is missing, and where no row renders at all.
    """
    template = template_for(spec, templates_dir)
    rows = load_rows(spec, split, data_dir, seed=seed)
    renderings = render(rows, template, truncate=truncate, keep_empty=keep_empty)
    if not renderings.examples:
        raise UserError(f"{spec.id!r} applies to none of the {len(rows):,} rows of the {split} split.")
    return renderings


def _is_embedded(spec: TaskSpec) -> bool:
    return spec.group.startswith("mini")
