"""SeqIO tasks: every task in SeqIO's registry, for its Evaluator, its mixtures and T5X.

`register_tasks` alone fills the registry; SeqIO and TensorFlow are imported when it is called. It reads no
data: a task's rows are rendered, by the function that all of elm_jax renders with, when SeqIO asks for them,
and are handed over as tensors, so that the state of an iterator can be saved.

A module of one's own that T5X's gin files import is two lines:

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
from elm_jax.tasks import mini, rendering, specs, task_templates
from elm_jax.tasks.data_source import Source
from elm_jax.tasks.datasets import datasets, training
from elm_jax.tasks.seqio_metrics import rank_accuracy, rank_postprocess, written
from elm_jax.tokenizers import sentencepiece

SCORE_EVAL = "_score_eval"
"""What the name of a task for rank classification ends with."""
MULTITASK = "elm_multitask"
CAP = 500_000
"""T0's: a dataset with more rows counts as if it had so many, shared between its prompts."""


@dataclass(frozen=True)
class Registered:
    """What `register_tasks` put into SeqIO's registry, by our names."""

    tasks: Mapping[str, str]  # task id -> SeqIO's task to train on
    ranked: Mapping[str, str]  # task id -> SeqIO's task for rank classification, where it has choices
    mixtures: Mapping[str, str]  # dataset -> mixture of its tasks: what a dataset expert is trained on
    multitask: str | None  # mixture of all tasks of the groups to train on


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
    """Registers tasks and their mixtures with SeqIO; what has these names already is replaced.

    Each task is a `seqio.Task` to train on, whose metric (`seqio_metrics.WRITTEN`) judges written answers;
    one with answer choices has a twin for rank classification, with `_score_eval` after its name. Each
    dataset is a mixture under its own name, of equal rates, and so are its twins; the tasks of the
    `multitask` groups are one mixture by the rates of T0 (Sanh et al. 2022). No row is read before SeqIO asks
    for it.

    Args:
        tasks: Specs or ids; default: all known tasks.
        vocabulary: One of SeqIO's, or the file of a SentencePiece model.
        extra_ids: Sentinels on top of a SentencePiece model.
        source: Where rows and templates come from, how many rows are taken, and whether inputs end with
            end-of-sequence (default: they do).
        data_dir: Directory of datasets, in place of the source's.
        templates_dir: Directory of templates, in place of the source's.
        multitask: Groups of the mixture of all tasks.

    Returns:
        What was registered, by our names.

    Raises:
        UserError: If a task or a metric does not exist, or if the model's file is missing.
    """
    import seqio

    given = {"data_dir": data_dir, "templates_dir": templates_dir}
    source = replace(
        source or Source(), **{name: where for name, where in given.items() if where is not None}
    )
    if not isinstance(vocabulary, seqio.Vocabulary):
        if not storage.path(vocabulary).is_file():
            raise UserError(f"A SentencePiece model is wanted at {str(vocabulary)!r}, but no file is there.")
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
    found = specs.task_specs() if tasks is None else [specs.spec_of(task) for task in tasks]
    called = seqio_names(found)
    ranked = {task: called[task] + SCORE_EVAL for task in _with_choices(found, source.templates_dir)}
    metrics = {spec.id: [written(spec.metric, spec.id)] for spec in found}
    for spec in found:
        splits = list(_sizes(spec))
        read = functools.partial(_read, spec=spec, source=source)
        texts = functools.partial(read, columns=_texts)
        read_source: Any = seqio.FunctionDataSource(texts, splits, _taken(spec, source.limit))
        seqio.TaskRegistry.remove(called[spec.id])
        seqio.TaskRegistry.add(called[spec.id], read_source, metric_fns=metrics[spec.id], **pipeline)
        if spec.id in ranked:
            read_source = seqio.FunctionDataSource(functools.partial(read, columns=_choices), splits)
            judged: dict[str, Any] = {"postprocess_fn": rank_postprocess, "metric_fns": [rank_accuracy]}
            seqio.TaskRegistry.remove(ranked[spec.id])
            seqio.TaskRegistry.add(ranked[spec.id], read_source, **judged, **pipeline)
    mixtures: dict[str, list[tuple[str, float]]] = {}
    for spec in found:
        mixtures.setdefault(spec.dataset, []).append((called[spec.id], 1.0))
        if spec.id in ranked:
            mixtures.setdefault(spec.dataset + SCORE_EVAL, []).append((ranked[spec.id], 1.0))
        if spec.group in multitask:
            rate = t0_rate(_sizes(spec).get(spec.split), _prompts(spec))
            mixtures.setdefault(MULTITASK, []).append((called[spec.id], rate))
    for name, rates in mixtures.items():
        seqio.MixtureRegistry.remove(name)
        seqio.MixtureRegistry.add(name, rates)
    of_dataset = {spec.dataset: spec.dataset for spec in found}
    return Registered(called, ranked, of_dataset, MULTITASK if MULTITASK in mixtures else None)


def seqio_names(wanted: Sequence[TaskSpec]) -> dict[str, str]:
    """Returns what SeqIO calls each task: as T0 and P3 do, by the folder of its templates and its prompt.

    ANLI's three rounds share a folder and have their name at the end, as there.

    >>> seqio_names([specs.find_task("anli_r1/must be true")])
    {'anli_r1/must be true': 'anli_must_be_true_r1'}
    """
    known = datasets()
    shared = Counter(dataset.templates for dataset in known.values())
    found = {}
    for spec in wanted:
        folder = known[spec.dataset].templates if spec.dataset in known else None
        if folder is None:
            name = f"{spec.dataset}_{spec.prompt}"
        elif shared[folder] == 1:
            name = f"{folder}_{spec.prompt}"
        else:
            name = f"{folder}_{spec.prompt}_{spec.dataset.removeprefix(folder + '_')}"
        found[spec.id] = re.sub(r"[^\w\d\._]+", "_", name)
    twice = [name for name, count in Counter(found.values()).items() if count > 1]
    if twice:
        clash = [task for task, name in found.items() if name == twice[0]]
        raise UserError(f"SeqIO would call {' and '.join(map(repr, clash))} both {twice[0]!r}. Rename one.")
    return found


def t0_rate(rows: int | None, prompts: int) -> float:
    """Returns the rate at which T0 mixes one prompt of a dataset; one of unknown size counts as large.

    >>> [t0_rate(400_000, 10), t0_rate(600_000, 10)]
    [400000.0, 50000.0]
    """
    return float(rows) if rows is not None and rows <= CAP else CAP / prompts


def _read(
    split: str,
    shuffle_files: bool,
    seed: int | None = None,
    *,
    spec: TaskSpec,
    source: Source,
    columns: Callable[[TaskSpec, Sequence[PromptedExample]], dict[str, Any]],
) -> Any:
    """What SeqIO calls for the rows of a split, once the rest is bound."""
    import tensorflow as tf

    found = columns(spec, rendering.examples(spec, split, source=source).examples)
    if shuffle_files and seed is not None:  # without a seed a restart would not find its place again
        order = np.random.default_rng(seed).permutation(len(found["row_id"]))
        found = {name: [values[at] for at in order.tolist()] for name, values in found.items()}
    tensors: Any = {name: np.array(values, _DTYPES.get(name, object)) for name, values in found.items()}
    return tf.data.Dataset.from_tensor_slices(tensors)


_DTYPES = {"idx": np.int32, "is_correct": np.bool_, "weight": np.float32}


def _texts(spec: TaskSpec, examples: Sequence[PromptedExample]) -> dict[str, Any]:
    """One row an example."""
    return {
        "inputs": [example.input for example in examples],
        "targets": [example.target for example in examples],
        "row_id": [example.row_id for example in examples],
    }


def _choices(spec: TaskSpec, examples: Sequence[PromptedExample]) -> dict[str, Any]:
    """One row a choice of an example."""
    for example in examples:
        if example.label is None:
            lack = "a target outside its choices" if example.choices else "no answer choices"
            raise UserError(
                f"Rank classification of {spec.id!r} wants answer choices with the right one among them, but "
                f"row {example.row_id!r} has {lack}."
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


def _with_choices(wanted: Sequence[TaskSpec], templates_dir: storage.PathLike | None) -> list[str]:
    """Returns the tasks that have answer choices: as their templates say, or their metric without these."""
    read: dict[str, Mapping[str, Template]] = {}  # a folder's templates at once: to parse them takes time
    found = []
    for spec in wanted:
        if not templates_dir and not task_templates.has_template(spec):
            ranked = spec.metric == "accuracy"
        else:
            if spec.dataset not in read:
                read[spec.dataset] = task_templates.templates_of(spec, templates_dir)
            ranked = read[spec.dataset][spec.prompt].answer_choices is not None
        found += [spec.id] if ranked else []
    return found


def _sizes(spec: TaskSpec) -> dict[str, int | None]:
    """Returns how many rows each split of a task has; None where that is not known beforehand."""
    known = datasets().get(spec.dataset)
    return dict(known.splits if known else mini.SPLITS)


def _taken(spec: TaskSpec, rows: int | None) -> dict[str, int]:
    """Returns how many rows are taken of each split whose size is known."""
    known, taken = datasets().get(spec.dataset), {}
    for split, count in _sizes(spec).items():
        most = rows
        if most is None and known and known.training and split == known.split:
            most = training(known, spec.prompt).rows
        if count is not None:
            taken[split] = count if most is None else min(count, most)
    return taken


def _prompts(spec: TaskSpec) -> int:
    known = datasets().get(spec.dataset)
    return len(known.prompts) if known else sum(spec.dataset == each.dataset for each in mini.task_specs())
