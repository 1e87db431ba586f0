"""Specs: every task by name, and the one door to its rows, its template and its prompted examples.

The paper's tasks are data (`datasets`); their rows come from `sources`, their templates from PromptSource's
directory, or from the catalogue where PromptSource has none. The embedded suite's (groups `mini-…`) are made
by `mini` and need neither.
"""

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from elm_jax import names, storage
from elm_jax.errors import UserError
from elm_jax.prompting import promptsource
from elm_jax.prompting.render import Renderings, render
from elm_jax.prompting.templates import TRUNCATE, Template, load_templates
from elm_jax.records import TaskSpec
from elm_jax.tasks import aliases, columns, mini, sources, subsets
from elm_jax.tasks.datasets import Dataset, datasets, training

FAITHFUL = ("empty_renderings", "first_rows", "dbpedia_labels", "homonyms")
"""Switches to what the original did with data, all off by default.

empty_renderings  keep rows that render to an empty input or target, or that the template does not apply to
first_rows        take the first rows of the datasets that it took the first rows of, not a permutation's
dbpedia_labels    shift DBpedia's classes by one, as its files count from 1 and its templates from 0
homonyms          read the subtask homonyms of conceptual_combinations twice
"""
SWAPPED_BLEU = "swapped_bleu"
"""Switch to the original's BLEU, with predictions and targets swapped: a way with answers, not with rows."""
SWITCHES = (*FAITHFUL, SWAPPED_BLEU)


def task_specs(group: str | None = None) -> list[TaskSpec]:
    """Returns the specs of all tasks, one a (dataset, prompt) pair, or those of one group.

    Groups are the paper's ("train", "unseen", "bigbench", …), one's own, and "mini", the embedded suite, or
    either half of it ("mini-train", "mini-unseen"). Raises a UserError for a `group` that does not exist.
    """
    specs = [
        TaskSpec(
            id=names.task_id(dataset.name, prompt),
            dataset=dataset.name,
            prompt=prompt,
            group=dataset.group,
            split=dataset.split,
            evaluation_split=dataset.evaluate,
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
    groups = dict.fromkeys(name for spec in specs for name in (group_of(spec), spec.group))
    names.resolve(group, groups, kind="group", where="the catalogue")
    return [spec for spec in specs if group in (group_of(spec), spec.group)]


def group_of(spec: TaskSpec) -> str:
    """Returns the group that a task is listed under: that of the embedded suite is one for all of it."""
    return "mini" if _is_embedded(spec) else spec.group


def find_task(name: str) -> TaskSpec:
    """Returns the spec of the task whose id `name` is, `dataset/prompt`, or which the original spells so.

    Raises a UserError that tells the nearest names where there is none.
    """
    known = {spec.id: spec for spec in task_specs()}
    if name not in known:
        with contextlib.suppress(UserError):  # the error below knows of the embedded tasks too
            name = resolve_original(name)
    return known[names.resolve(name, known, kind="task", where="the catalogue")]


def spec_of(task: TaskSpec | str) -> TaskSpec:
    """Returns a task's spec, which may be what was given or found by its id."""
    return find_task(task) if isinstance(task, str) else task


def resolve_original(name: str) -> str:
    """Returns the id of a task, or the name of a dataset, as the paper's released files may spell it.

    >>> resolve_original("glue/mrpc@want to know")
    'glue_mrpc/want to know'
    """
    return aliases.resolve(name, datasets())


def load_rows(
    spec: TaskSpec,
    split: str,
    data_dir: storage.PathLike | None = None,
    *,
    seed: int = 42,
    rows: int | None = None,
    faithful: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Returns a split's rows in the templates' columns and plain Python values, with their ids in `row_id`.

    An embedded dataset is made from `seed`. Of any other the first `rows` are taken in the order of a
    permutation drawn from `seed`. Without a number they are as many as the paper takes of the split that its
    experts are trained on; of any other split they are all, in the source's order. `faithful` names some of
    `FAITHFUL`.
    """
    if _is_embedded(spec):
        return mini.rows(spec.dataset, split, seed=seed)[:rows]
    for switch in faithful:
        names.resolve(switch, FAITHFUL, kind="switch", where="elm_jax.tasks.specs")
    dataset = datasets()[spec.dataset]
    switched = {name: what for name, what in dataset.faithful.items() if name in faithful}
    opened = sources.open_split(dataset, split, data_dir, prompt=spec.prompt, again=switched.get("homonyms"))
    if rows is None and dataset.training and split == dataset.split:
        rows = training(dataset, spec.prompt).rows
    if rows is None or "first_rows" in switched:
        numbers = subsets.first(opened.count, opened.count if rows is None else rows)
    else:
        numbers = subsets.shuffled(opened.count, rows, seed=seed)
    adapted = columns.adapt(
        opened.take(numbers),
        opened.source.adapter,
        label=dataset.label,
        file=opened.origin,
        columns=[name for name in dataset.columns if name not in opened.source.lacks],
        numbers=numbers,
    )
    kept = zip(numbers, adapted, strict=True)
    if "dbpedia_labels" in switched:
        kept = _shifted(kept, **switched["dbpedia_labels"])
    # Rows of files that differ by prompt are other rows for every prompt.
    own = any("{prompt}" in file for of_split in opened.source.files.values() for file in of_split)
    named = f"{dataset.name}/{spec.prompt}/{split}" if own else f"{dataset.name}/{split}"
    return [{**row, "row_id": f"{named}/{number}"} for number, row in kept]


def template_for(spec: TaskSpec, templates_dir: storage.PathLike | None = None) -> Template:
    """Returns a task's template.

    PromptSource's come from `templates_dir`, laid out as PromptSource's own, or else from what `elm prompts
    fetch` brought. Raises `UserError` where neither is there, and where a template reads a column that the
    dataset has not.
    """
    found = templates_of(spec, templates_dir)
    where = f"the templates of {spec.dataset!r}"
    template = found[names.resolve(spec.prompt, found, kind="template", where=where)]
    if not _is_embedded(spec):
        check_columns(datasets()[spec.dataset], template)
    return template


def templates_of(spec: TaskSpec, templates_dir: storage.PathLike | None = None) -> Mapping[str, Template]:
    """Returns the templates of a task's dataset by name, among them those that no task is made of."""
    if _is_embedded(spec):
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
    if _is_embedded(spec) or datasets()[spec.dataset].template or datasets()[spec.dataset].inline:
        return True
    return promptsource.templates_directory() is not None


def is_truncated(spec: TaskSpec) -> bool:
    """Tells whether the values that a task's template writes may be cut: not those of whole texts."""
    return _is_embedded(spec) or datasets()[spec.dataset].template is None


def check_columns(dataset: Dataset, template: Template) -> None:
    """Refuses a template that reads a column which rows of the dataset do not have."""
    missing = sorted(template.columns - set(dataset.columns))
    if missing and dataset.columns:  # a dataset of one's own need not name any
        raise UserError(
            f"Template {template.name!r} reads {', '.join(map(repr, missing))}, but rows of {dataset.name!r} "
            f"have only these columns: {', '.join(map(repr, dataset.columns))}. Name it in the catalogue's "
            "`columns` if its sources have it."
        )


def examples(
    task: TaskSpec | str,
    split: str | None = None,
    *,
    data_dir: storage.PathLike | None = None,
    templates_dir: storage.PathLike | None = None,
    seed: int = 42,
    rows: int | None = None,
    truncate: int | None = TRUNCATE,
    faithful: Collection[str] = (),
) -> Renderings:
    """Returns a task's prompted examples of one split, its rows through its template: `Renderings`.

    These hold the `examples`, each with its input, answer choices, target and row id, and say how many rows
    gave none. `task` is a spec or an id; the `split` is the one that the spec names, if none is given.
    `data_dir` is where files of rows lie, `templates_dir` PromptSource's templates. At most `rows` are taken,
    in an order drawn from `seed`; without a number they are as many as the paper takes (see `load_rows`).
    `truncate` is how many characters of a value a template writes, as PromptSource's 2,048; None is no limit,
    and texts that the source wrote itself (BIG-bench's and CT0's) have none. `faithful` names ways of the
    original (`FAITHFUL`).

    Raises a UserError where a directory, file or column is missing, and where no row renders at all.
    """
    spec = spec_of(task)
    split = split or spec.split
    template = template_for(spec, templates_dir)
    found = load_rows(spec, split, data_dir, seed=seed, rows=rows, faithful=faithful)
    return render_rows(spec, split, found, template, truncate=truncate, faithful=faithful)


def render_rows(
    spec: TaskSpec,
    split: str,
    found: Sequence[Mapping[str, Any]],
    template: Template,
    *,
    truncate: int | None = TRUNCATE,
    faithful: Collection[str] = (),
) -> Renderings:
    """Returns what `examples` does, of rows that `load_rows` gave; several prompts may share them."""
    if not is_truncated(spec):
        truncate = None
    renderings = render(found, template, truncate=truncate, keep_empty="empty_renderings" in faithful)
    if not renderings.examples:
        raise UserError(f"{spec.id!r} applies to none of the {len(found):,} rows of the {split} split.")
    return renderings


def _shifted(
    rows: Iterable[tuple[int, dict[str, Any]]], column: str, classes: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Gives every row the class after its own. The last has none, and the original no target for it."""
    for number, row in rows:
        if row[column] + 1 < classes:
            yield number, {**row, column: row[column] + 1}


def _is_embedded(spec: TaskSpec) -> bool:
    return spec.group.startswith("mini")
