"""SeqIO tasks: puts tasks into SeqIO's registry, for its Evaluator, its mixtures and T5X.

SeqIO and TensorFlow are imported only when `register_tasks` is called. It reads no data: a task's rows are
rendered when SeqIO reads them, and returned as tensors, so that the state of an iterator can be saved.

A user's module for T5X's gin files needs two lines:

    import elm_jax
    elm_jax.register_tasks(vocabulary="spiece.model", data_dir="data", templates_dir="templates")
"""

import functools
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.prompting.templates import Template
from elm_jax.records import PromptedExample, TaskSpec
from elm_jax.tasks import mini, rendering, seqio_registry, specs, task_templates
from elm_jax.tasks.data_source import Source
from elm_jax.tasks.datasets import all_datasets, training
from elm_jax.tasks.seqio_metrics import get_metric, rank_accuracy, rank_postprocess
from elm_jax.tokenizers import sentencepiece

SCORE_EVAL = "_score_eval"
"""Suffix of the names of tasks for rank classification."""
MULTITASK = "elm_multitask"
EVALUATION = "evaluation"
"""Split of every task: the one that evaluation reads, whatever the dataset calls it."""
MAX_MIXED_ROWS = 500_000
"""T0's limit: a dataset with more rows counts as if it had so many, shared between its prompts."""


@dataclass(frozen=True)
class Registered:
    """SeqIO's names of what `register_tasks` registered.

    Attributes:
        tasks: Task id -> SeqIO's task to train on.
        ranked: Task id -> SeqIO's task for rank classification, for tasks with answer choices.
        mixtures: Dataset -> mixture of its tasks, which a dataset expert is trained on.
        multitask: Mixture of all tasks of the groups to train on; None if there are none.
    """

    tasks: Mapping[str, str]
    ranked: Mapping[str, str]
    mixtures: Mapping[str, str]
    multitask: str | None


def register_tasks(
    tasks: Sequence[TaskSpec | str] | None = None,
    *,
    vocabulary: Any,
    extra_ids: int = sentencepiece.EXTRA_IDS,
    source: Source | None = None,
    data_dir: storage.PathLike | None = None,
    templates_dir: storage.PathLike | None = None,
    multitask: Collection[str] = ("train",),
) -> Registered:
    """Registers tasks and their mixtures with SeqIO; those of ours of the same names are replaced.

    Each task is a `seqio.Task` to train on, with the metric of generated answers (`seqio_metrics.METRICS`). A
    task with answer choices has a second one for rank classification, whose name ends with `_score_eval`.
    Each dataset is a mixture of equal rates under its own name, once of either kind of task. The tasks of the
    `multitask` groups are one mixture with the rates of T0 (Sanh et al. 2022). The split `evaluation` of each
    is the one that evaluation reads. No row is read before SeqIO reads or counts it.

    Args:
        tasks: Specs or ids; default: all known tasks.
        vocabulary: A vocabulary of SeqIO's, or the file of a SentencePiece model.
        extra_ids: Sentinels on top of a SentencePiece model.
        source: Where rows and templates come from, how many rows are taken, and whether inputs end with
            end-of-sequence (default: they do).
        data_dir: Directory of datasets, in place of the source's.
        templates_dir: Directory of templates, in place of the source's.
        multitask: Groups of the mixture of all tasks.

    Returns:
        SeqIO's names of what was registered.

    Raises:
        UserError: If a task or a metric does not exist, if the model's file is missing, if two tasks would
            have one name, or if another module registered one of these names.
    """
    import seqio

    given = {"data_dir": data_dir, "templates_dir": templates_dir}
    source = replace(
        source or Source(), **{name: where for name, where in given.items() if where is not None}
    )
    if not isinstance(vocabulary, seqio.Vocabulary):
        if not storage.path(vocabulary).is_file():
            raise UserError(
                f"Expected a SentencePiece model at {str(vocabulary)!r}, got no file. Fix: correct the path."
            )
        vocabulary = seqio.SentencePieceVocabulary(str(vocabulary), extra_ids=extra_ids)
    pipeline: dict[str, Any] = {
        "output_features": {
            "inputs": seqio.Feature(vocabulary, add_eos=source.input_eos is not False),
            "targets": seqio.Feature(vocabulary, add_eos=True),
        },
        "preprocessors": [
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
            seqio.preprocessors.append_eos_after_trim,
        ],
    }
    chosen = specs.task_specs() if tasks is None else [specs.get_spec(task) for task in tasks]
    task_names = make_seqio_names(chosen)
    ranked_ids = _find_ranked_tasks(chosen, source.templates_dir)
    ranked = {task: task_names[task] + SCORE_EVAL for task in ranked_ids}
    metrics = {spec.id: [get_metric(spec.metric, spec.id)] for spec in chosen}
    for spec in chosen:
        splits = [*count_split_rows(spec), EVALUATION]
        read = functools.partial(_load_dataset, spec=spec, source=source)
        texts = functools.partial(read, columns=_build_text_columns)
        read_source = seqio_registry.make_source(texts, splits, _count_used_rows(spec, source.limit))
        seqio_registry.add_task(task_names[spec.id], read_source, metric_fns=metrics[spec.id], **pipeline)
        if spec.id in ranked:
            choices = functools.partial(read, columns=_build_choice_columns)
            read_source = seqio_registry.make_source(choices, splits, {})
            judged: dict[str, Any] = {"postprocess_fn": rank_postprocess, "metric_fns": [rank_accuracy]}
            seqio_registry.add_task(ranked[spec.id], read_source, **judged, **pipeline)
    mixtures: dict[str, list[tuple[str, float]]] = {}
    for spec in chosen:
        mixtures.setdefault(spec.dataset, []).append((task_names[spec.id], 1.0))
        if spec.id in ranked:
            mixtures.setdefault(spec.dataset + SCORE_EVAL, []).append((ranked[spec.id], 1.0))
        if spec.group in multitask:
            mixtures.setdefault(MULTITASK, []).append((task_names[spec.id], get_t0_rate(spec)))
    for name, rates in mixtures.items():
        seqio_registry.add_mixture(name, rates)
    dataset_mixtures = {spec.dataset: spec.dataset for spec in chosen}
    return Registered(task_names, ranked, dataset_mixtures, MULTITASK if MULTITASK in mixtures else None)


def make_seqio_names(tasks: Sequence[TaskSpec]) -> dict[str, str]:
    """Returns SeqIO's names of tasks by id: as in T0 and P3, the folder of the templates and the prompt.

    ANLI's three rounds share a folder; their names are at the end, as in T0 and P3.

    >>> make_seqio_names([specs.find_task("anli_r1/must be true")])
    {'anli_r1/must be true': 'anli_must_be_true_r1'}
    """
    known = all_datasets()
    folders = Counter(dataset.templates for dataset in known.values())
    found = {}
    for spec in tasks:
        folder = known[spec.dataset].templates if spec.dataset in known else None
        if folder is None:
            name = f"{spec.dataset}_{spec.prompt}"
        elif folders[folder] == 1:
            name = f"{folder}_{spec.prompt}"
        else:
            name = f"{folder}_{spec.prompt}_{spec.dataset.removeprefix(folder + '_')}"
        found[spec.id] = re.sub(r"[^\w\d\._]+", "_", name)
    repeated = [name for name, count in Counter(found.values()).items() if count > 1]
    if repeated:
        clash = [task for task, name in found.items() if name == repeated[0]]
        raise UserError(
            f"Expected one task per SeqIO name, got {' and '.join(map(repr, clash))} for {repeated[0]!r}. "
            "Fix: rename one."
        )
    return found


def compute_t0_rate(rows: int | None, prompts: int) -> float:
    """Returns T0's mixing rate of one prompt of a dataset; a dataset of unknown size counts as large.

    >>> [compute_t0_rate(400_000, 10), compute_t0_rate(600_000, 10)]
    [400000.0, 50000.0]
    """
    return float(rows) if rows is not None and rows <= MAX_MIXED_ROWS else MAX_MIXED_ROWS / prompts


def get_t0_rate(spec: TaskSpec) -> float:
    """Returns T0's mixing rate of a task of the catalogue or the user's."""
    return compute_t0_rate(count_split_rows(spec).get(spec.split), _count_prompts(spec))


def _load_dataset(
    split: str,
    shuffle_files: bool,
    seed: int | None = None,
    *,
    spec: TaskSpec,
    source: Source,
    columns: Callable[[TaskSpec, Sequence[PromptedExample]], dict[str, Any]],
) -> Any:
    """Returns the rows of a split as SeqIO reads them; `functools.partial` binds the rest."""
    import tensorflow as tf

    if split == EVALUATION:
        split = spec.evaluation_split or spec.split
    found = columns(spec, rendering.examples(spec, split, source=source).examples)
    if shuffle_files and seed is not None:  # without a seed a restart could not resume
        order = np.random.default_rng(seed).permutation(len(found["row_id"]))
        found = {name: [values[at] for at in order.tolist()] for name, values in found.items()}
    tensors: Any = {name: np.array(values, _DTYPES.get(name, object)) for name, values in found.items()}
    return tf.data.Dataset.from_tensor_slices(tensors)


_DTYPES = {"idx": np.int32, "is_correct": np.bool_, "weight": np.float32}


def _build_text_columns(spec: TaskSpec, examples: Sequence[PromptedExample]) -> dict[str, Any]:
    """Returns columns with one row per example."""
    return {
        "inputs": [example.input for example in examples],
        "targets": [example.target for example in examples],
        "row_id": [example.row_id for example in examples],
    }


def _build_choice_columns(spec: TaskSpec, examples: Sequence[PromptedExample]) -> dict[str, Any]:
    """Returns columns with one row per answer choice of an example."""
    for example in examples:
        if example.label is None:
            lack = "a target outside its choices" if example.choices else "no answer choices"
            raise UserError(
                f"Expected answer choices with the target among them in every row of {spec.id!r}, got row "
                f"{example.row_id!r} with {lack}. Fix: use the task without {SCORE_EVAL}."
            )
    pairs = [
        (number, choice, example)
        for number, example in enumerate(examples)
        for choice in range(len(example.choices))
    ]
    return {
        "inputs": [example.input for _, _, example in pairs],
        "targets": [example.choices[choice] for _, choice, example in pairs],
        "row_id": [example.row_id for _, _, example in pairs],
        "idx": [(number, choice) for number, choice, _ in pairs],
        "is_correct": [choice == example.label for _, choice, example in pairs],
        "weight": [1.0 for _ in pairs],
    }


def _find_ranked_tasks(tasks: Sequence[TaskSpec], templates_dir: storage.PathLike | None) -> list[str]:
    """Returns the ids of tasks whose choices are ranked, by their metrics, and by templates if there are."""
    read: dict[str, Mapping[str, Template]] = {}  # parsing a folder's templates takes time
    found = []
    for spec in filter(specs.is_ranked, tasks):
        if templates_dir or task_templates.has_template(spec):
            if spec.dataset not in read:
                read[spec.dataset] = task_templates.load_dataset_templates(spec, templates_dir)
            if read[spec.dataset][spec.prompt].answer_choices is None:
                continue
        found.append(spec.id)
    return found


def count_split_rows(spec: TaskSpec) -> dict[str, int | None]:
    """Returns the number of rows of each split of a task; None if it is not known beforehand."""
    known = all_datasets().get(spec.dataset)
    return dict(known.splits if known else mini.SPLITS)


def _count_used_rows(spec: TaskSpec, limit: int | None) -> dict[str, int]:
    """Returns how many rows are used of each split whose size is known."""
    known, used = all_datasets().get(spec.dataset), {}
    for split, count in count_split_rows(spec).items():
        most = limit
        if most is None and known and known.training and split == known.split:
            most = training(known, spec.prompt).rows
        if count is not None:
            used[split] = count if most is None else min(count, most)
    return used


def _count_prompts(spec: TaskSpec) -> int:
    known = all_datasets().get(spec.dataset)
    return len(known.prompts) if known else sum(spec.dataset == each.dataset for each in mini.task_specs())
