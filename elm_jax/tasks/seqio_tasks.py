"""SeqIO tasks: every task in SeqIO's registry, for its Evaluator, its mixtures and T5X.

`register` fills the registry, and nothing else here does; SeqIO and TensorFlow are imported when it is called.
It reads no data: a task's rows are rendered, by the function that all of elm_jax renders with, when SeqIO asks
for them, and handed over as tensors, so that the state of an iterator can be saved.

A module of one's own that T5X's gin files import is two lines:

    from elm_jax.tasks import seqio_tasks
    seqio_tasks.register(vocabulary="spiece.model", data_dir="data", templates_dir="templates")
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.prompting.templates import TRUNCATE
from elm_jax.records import PromptedExample, TaskSpec
from elm_jax.tasks import mini, specs, vocabulary
from elm_jax.tasks.datasets import datasets

SCORE_EVAL = "_score_eval"
"""What the name of a task for rank classification ends with."""
MULTITASK = "elm_multitask"
CAP = 500_000
"""T0's: a dataset with more rows counts as if it had so many, shared between its prompts."""


@dataclass(frozen=True)
class Registered:
    """What `register` put into SeqIO's registry, by our names."""

    tasks: Mapping[str, str]  # task id -> SeqIO's task to train on
    ranked: Mapping[str, str]  # task id -> SeqIO's task for rank classification, where it has choices
    mixtures: Mapping[str, str]  # dataset -> mixture of its tasks: what a dataset expert is trained on
    multitask: str | None  # mixture of all tasks of the groups to train on


def register(
    wanted: Sequence[TaskSpec] | None = None,
    *,
    vocabulary: Any,
    extra_ids: int = vocabulary.EXTRA_IDS,
    data_dir: storage.PathLike | None = None,
    templates_dir: storage.PathLike | None = None,
    seed: int = 42,
    rows: int | None = None,
    truncate: int | None = TRUNCATE,
    faithful: Collection[str] = (),
    input_eos: bool = True,
    multitask: Collection[str] = ("train",),
) -> Registered:
    """Registers tasks (all without `wanted`) and their mixtures with SeqIO; what has these names is replaced.

    Each task is a `seqio.Task` to train on; one that has answer choices has a twin for rank classification,
    with `_score_eval` after its name. Each dataset is a mixture under its own name, of equal rates, and so are
    its twins; the tasks of the `multitask` groups are one mixture by T0's rates. `vocabulary` is one of
    SeqIO's or the file of a SentencePiece model, which then gets `extra_ids` sentinels. The rest is what
    `specs.examples` takes. `input_eos` is whether inputs end with end-of-sequence.
    """
    import seqio

    if not isinstance(vocabulary, seqio.Vocabulary):
        vocabulary = seqio.SentencePieceVocabulary(str(vocabulary), extra_ids=extra_ids)
    features = {
        "inputs": seqio.Feature(vocabulary, add_eos=input_eos),
        "targets": seqio.Feature(vocabulary, add_eos=True),
    }
    preprocessors = [
        seqio.preprocessors.tokenize,
        seqio.CacheDatasetPlaceholder(),
        seqio.preprocessors.append_eos_after_trim,
    ]
    reading = {"data_dir": data_dir, "templates_dir": templates_dir, "seed": seed, "rows": rows}
    reading |= {"truncate": truncate, "faithful": faithful}
    found = specs.task_specs() if wanted is None else list(wanted)
    called = seqio_names(found)
    ranked = {spec.id: called[spec.id] + SCORE_EVAL for spec in found if _has_choices(spec, templates_dir)}
    for spec in found:
        sizes = _sizes(spec, rows)
        common = {"output_features": features, "preprocessors": preprocessors}
        seqio.TaskRegistry.remove(called[spec.id])
        seqio.TaskRegistry.add(
            called[spec.id],
            source=seqio.FunctionDataSource(_reader(spec, reading, _texts), list(sizes), _known(sizes)),
            metric_fns=[exact_match] if spec.metric in ("accuracy", "exact_match") else [],
            **common,
        )
        if spec.id in ranked:
            seqio.TaskRegistry.remove(ranked[spec.id])
            seqio.TaskRegistry.add(
                ranked[spec.id],
                source=seqio.FunctionDataSource(_reader(spec, reading, _choices), list(sizes)),
                postprocess_fn=rank_postprocess,
                metric_fns=[rank_accuracy],
                **common,
            )
    of_dataset: dict[str, list[str]] = {}
    for spec in found:
        of_dataset.setdefault(spec.dataset, []).append(called[spec.id])
        if spec.id in ranked:
            of_dataset.setdefault(spec.dataset + SCORE_EVAL, []).append(ranked[spec.id])
    for name, tasks in of_dataset.items():
        seqio.MixtureRegistry.remove(name)
        seqio.MixtureRegistry.add(name, tasks, default_rate=1.0)
    rates = [
        (called[spec.id], t0_rate(_sizes(spec, None)[spec.split], _prompts(spec)))
        for spec in found
        if spec.group in multitask
    ]
    if rates:
        seqio.MixtureRegistry.remove(MULTITASK)
        seqio.MixtureRegistry.add(MULTITASK, rates)
    return Registered(
        tasks=called,
        ranked=ranked,
        mixtures={spec.dataset: spec.dataset for spec in found},
        multitask=MULTITASK if rates else None,
    )


def seqio_names(wanted: Sequence[TaskSpec]) -> dict[str, str]:
    """Returns what SeqIO calls each task: as T0 and P3 do, by the folder of its templates and its prompt.

    ANLI's three rounds share a folder and have their name at the end, as there.

    >>> list(seqio_names([specs.find_task("glue_mrpc/want to know"), specs.find_task("anli_r1/must be true")]).values())
    ['glue_mrpc_want_to_know', 'anli_must_be_true_r1']
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


def rank_postprocess(output: Any, example: Mapping[str, Any] | None = None, is_target: bool = False) -> Any:
    """Returns of a target what `rank_accuracy` needs: (row, choice), is it correct, its weight, its tokens."""
    if not is_target or example is None:
        return output
    return (
        tuple(np.asarray(example["idx"]).tolist()),
        bool(example["is_correct"]),
        float(example["weight"]),
        int(np.count_nonzero(example["targets"])),
    )


def rank_accuracy(targets: Sequence[Any], scores: Any, *, per_token: bool = False) -> dict[str, float]:
    """Returns the share of rows, in percent, whose best-scored choice is correct: rank classification.

    `targets` are what `rank_postprocess` gives, a choice each, in any order; rows may have different numbers
    of choices. A tie goes to the first choice. A row counts by its first choice's weight. `scores` are log
    likelihoods, and with `per_token` they are divided by the number of the choice's tokens.
    """
    if isinstance(scores, tuple):  # scores, and whatever else the model told
        scores = scores[0]
    if len(targets) != len(scores):
        raise UserError(f"A score is wanted for each of {len(targets)} choices, but {len(scores)} came.")
    of_row: dict[int, list[tuple[int, float, bool, float]]] = {}
    for ((row, choice), correct, weight, tokens), score in zip(targets, scores, strict=True):
        value = float(score) / max(tokens, 1) if per_token else float(score)
        of_row.setdefault(row, []).append((choice, value, correct, weight))
    right = total = 0.0
    for choices in of_row.values():
        choices.sort(key=lambda entry: entry[0])
        best = max(choices, key=lambda entry: entry[1])  # of equals the first
        right += choices[0][3] * best[2]
        total += choices[0][3]
    return {"accuracy": 100 * right / total if total else 0.0}


def exact_match(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Returns the share of predictions, in percent, that are their target but for white space around them."""
    same = [target.strip() == told.strip() for target, told in zip(targets, predictions, strict=True)]
    return {"exact_match": 100 * float(np.mean(same)) if same else 0.0}


def _reader(
    spec: TaskSpec,
    reading: Mapping[str, Any],
    columns: Callable[[TaskSpec, Sequence[PromptedExample]], dict[str, Any]],
) -> Callable[..., Any]:
    """Returns the function that SeqIO calls for a split's rows."""

    def read(split: str, shuffle_files: bool, seed: int | None = None) -> Any:
        import tensorflow as tf

        found = columns(spec, specs.examples(spec, split, **reading).examples)
        if shuffle_files and seed is not None:  # without a seed a restart would not find its place again
            order = np.random.default_rng(seed).permutation(len(found["row_id"]))
            found = {name: [values[at] for at in order.tolist()] for name, values in found.items()}
        return tf.data.Dataset.from_tensor_slices(
            {name: np.array(values, _DTYPES.get(name, object)) for name, values in found.items()}
        )

    return read


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


def _has_choices(spec: TaskSpec, templates_dir: storage.PathLike | None) -> bool:
    """Whether a task has answer choices: as its template says, or its metric where that is not at hand."""
    if spec.metric != "accuracy":
        return False
    if templates_dir is None and not specs.has_template(spec):
        return True
    return specs.template_for(spec, templates_dir).answer_choices is not None


def _sizes(spec: TaskSpec, rows: int | None) -> dict[str, int | None]:
    """Returns the splits of a task, with as many rows as are taken of each, None where that is not known."""
    if spec.dataset not in datasets():
        return {split: count if rows is None else min(rows, count) for split, count in mini.SPLITS.items()}
    dataset = datasets()[spec.dataset]
    return {
        split: count if rows is None or count is None else min(rows, count)
        for split, count in dataset.splits.items()
    }


def _known(sizes: Mapping[str, int | None]) -> dict[str, int]:
    return {split: count for split, count in sizes.items() if count is not None}


def _prompts(spec: TaskSpec) -> int:
    if spec.dataset not in datasets():
        return sum(spec.dataset == other.dataset for other in mini.task_specs())
    return len(datasets()[spec.dataset].prompts)
