"""Statistics of an expert's own training data, computed once and stored in the run's directory.

RegMean and Fisher merge by them, and routers compare tokens with the mean inputs of an expert's projections.
They are computed from a few of the rows that the expert was trained on, with the expert in place; the labels
are the rows' own.
"""

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

import numpy as np
from etils import epath

from elm_jax import locks, names, storage
from elm_jax.data import identity, task_rows
from elm_jax.data.task_rows import Examples
from elm_jax.data.tokenized_rows import TokenizedRows
from elm_jax.errors import UserError
from elm_jax.experts import compatibility, key_texts, training_rows
from elm_jax.experts.files import ExpertDescription
from elm_jax.experts.lookup import BASE_SCORER, find_library, library_finder
from elm_jax.records import Expert, ExpertSpec, PromptedExample, TaskSpec
from elm_jax.session.workspace import Run, Workspace
from elm_jax.statistics import estimators
from elm_jax.statistics.estimators import Statistics
from elm_jax.tasks import data_source

STATISTICS_ROWS = 256
"""Rows of an expert that statistics are taken of; all of them if it has fewer."""
ESTIMATORS = {"regmean": estimators.regmean_statistics, "fisher": estimators.fisher_statistics}
"""Merging method -> what computes the statistics that it reads."""
STATISTICS_FILES = {"regmean": "mean_grams", "fisher": "fisher"}
"""Merging method -> the name of its file; `regmean`, which older runs have, is a sum over tokens."""
Compute = Callable[[Expert, TokenizedRows], Statistics]


def with_tasks_of_parts(spec: ExpertSpec) -> ExpertSpec:
    """Returns a merged expert's spec as if it was trained on the tasks of its parts; others unchanged."""
    parts = spec.recipe.get("merged_from")
    if not parts:
        return spec
    return replace(
        spec,
        recipe={
            "tasks": parts,
            identity.ROW_IDENTITIES_KEY: spec.recipe.get(identity.ROW_IDENTITIES_KEY, {}),
        },
    )


def can_have_keys(spec: ExpertSpec, source: data_source.Source) -> bool:
    """Says whether the tasks for an expert's keys are known: its own, or those of its parts."""
    try:
        return bool(training_rows.find_training_tasks(with_tasks_of_parts(spec), source))
    except UserError:
        return False


def report_skipped_experts(run: Run, experts: Sequence[str]) -> None:
    """Prints which experts are skipped because no keys can be made for them; nothing if there are none."""
    if experts:
        run.stages.console.print(
            f"Skipped, because the tasks for their keys are not known: {', '.join(experts)}. Fix: name the "
            "file of their tasks with --tasks, or give texts with `elm index --expert ID --keys FILE`.",
            highlight=False,
            markup=False,
        )


def sample_training_rows(
    spec: ExpertSpec, source: data_source.Source, size: int
) -> list[tuple[TaskSpec, PromptedExample]]:
    """Returns `size` of the rows that an expert was trained on, as many from each of its tasks.

    Raises:
        UserError: If other rows are there now than those that it was trained on.
    """
    return sample_rows(training_rows.load_training_rows(spec, source, size), size, source.seed)


def sample_rows(
    tasks: Sequence[tuple[TaskSpec, Examples]], size: int, seed: int
) -> list[tuple[TaskSpec, PromptedExample]]:
    """Returns `size` rows of tasks, as many from each."""
    shares = [size // len(tasks) + (number < size % len(tasks)) for number in range(len(tasks))]
    return [
        (task, example)
        for (task, examples), share in zip(tasks, shares, strict=True)
        for example in key_texts.sample_examples(examples, share, seed)
    ]


def check_inputs(run: Run, experts: Iterable[str]) -> dict[str, str]:
    """Checks that experts have the run's vocabulary, and prints which were trained on other rows than now.

    They are used nevertheless: nobody else can tell whether the old rows or the new ones are the right ones.

    Returns:
        Expert -> what differs, of those for which something does.

    Raises:
        UserError: If some were trained with another vocabulary.
    """
    home_of = library_finder(run.workspace)
    specs = [home_of(expert).spec(expert) for expert in sorted(set(experts) - {BASE_SCORER})]
    compatibility.require_vocabulary(specs, run.tokenizer.fingerprint)
    described = {spec.id: training_rows.describe_changed_rows(spec, run.source) for spec in specs}
    for spec in specs:
        trained_here = identity.ROW_IDENTITIES_KEY in spec.recipe and "merged_from" not in spec.recipe
        if trained_here and spec.recipe.get("input_eos", True) != run.tokenizer.input_eos:
            described[spec.id] = ", ".join(filter(None, [described[spec.id], "input_eos"]))
    changed = {expert: changes for expert, changes in described.items() if changes}
    for expert, changes in changed.items():
        run.stages.console.print(
            f"{changes} differ from when {expert} was trained, which is used as it is.",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    return changed


def require_computable(method: str, specs: Sequence[ExpertSpec], source: data_source.Source) -> None:
    """Raises a UserError if the statistics of a merging method cannot be computed for all experts."""
    if method not in ESTIMATORS:
        raise UserError(
            f"Expected statistics for merging method {method!r}, which reads them, got none. Fix: give one "
            f"tree per expert as `statistics`; they are computed for {' and '.join(ESTIMATORS)} alone."
        )
    for spec in specs:
        training_rows.find_training_tasks(spec, source)


def load_merge_statistics(
    run: Run, experts: Sequence[str], method: str, paths: Collection[str], *, rows: int = STATISTICS_ROWS
) -> list[Statistics]:
    """Returns what a merging method reads of each expert's data; it is computed if it is not stored.

    Args:
        run: The run.
        experts: Ids of experts of the run.
        method: A merging method of `ESTIMATORS`.
        paths: The paths that statistics are needed for.
        rows: How many training rows of each expert are read.

    Returns:
        Path -> statistics, for each expert.
    """
    estimate = ESTIMATORS[method]
    base = run.base

    def compute(expert: Expert, prepared: TokenizedRows) -> Statistics:
        return estimate(base.config, base.params, expert, *_split_tokens(prepared), paths)

    with run.stages.stage(f"statistics for {method}", len(experts)) as advance:
        loaded = []
        for done, expert in enumerate(experts, start=1):
            loaded.append(_load_or_compute(run, expert, STATISTICS_FILES[method], rows, list(paths), compute))
            advance(done, expert)
    return loaded


def load_mean_inputs(run: Run, expert: str, *, rows: int = STATISTICS_ROWS) -> Statistics:
    """Returns the mean over rows of what enters each projection that a LoRA expert changes: path -> [L, I].

    Raises:
        UserError: If the expert is no LoRA.
    """
    owned = find_library(run.workspace, expert).spec(expert).paths
    projections = sorted({path.removesuffix("/lora_a") for path in owned if path.endswith("/lora_a")})
    if not projections:
        raise UserError(
            f"Expected a LoRA expert, at whose projections tokens are compared, got {expert!r}. Fix: train "
            "experts with `--kind lora`, or choose another router."
        )

    def compute(expert: Expert, prepared: TokenizedRows) -> Statistics:
        base = run.base
        return estimators.mean_inputs(base.config, base.params, expert, *_split_tokens(prepared), projections)

    return _load_or_compute(run, expert, "row_means", rows, projections, compute)


def _split_tokens(prepared: TokenizedRows) -> tuple[estimators.Tokens, estimators.Tokens]:
    return list(prepared.inputs), list(prepared.targets)


def _load_or_compute(
    run: Run, expert: str, name: str, rows: int, paths: Sequence[str], compute: Compute
) -> Statistics:
    """Returns an expert's statistics: stored ones of this very expert and these rows, or computed ones."""
    library = find_library(run.workspace, expert)
    description = library.describe(expert)
    examples = [example for _, example in sample_training_rows(description.spec, run.source, rows)]
    prepared = task_rows.tokenize_task(
        examples, run.tokenizer, training_rows.training_lengths(description.spec, run.lengths)
    )
    cache_key = _cache_key(run, description, prepared, paths)
    file = _file(run.workspace, expert, name)
    statistics = _read(file, cache_key)
    if statistics is None:
        statistics = compute(library.load_expert(expert, base=run.base.fingerprint), prepared)
        about = json.dumps({"stamp": cache_key, "checksum": storage.array_fingerprint(statistics)}).encode()
        with locks.hold(run.workspace.statistics / ".lock", "a writer of statistics", seconds=60.0):
            storage.write_arrays(file, {**statistics, "about": np.frombuffer(about, np.uint8)})
    return statistics


def _read(file: epath.Path, cache_key: str) -> Statistics | None:
    """Returns a file's statistics; None if it is absent, damaged or has another cache key."""
    try:
        arrays = storage.read_arrays(file, what="Statistics")
        about = json.loads(arrays.pop("about").tobytes())
    except (UserError, KeyError, ValueError, RecursionError):
        return None
    if about != {"stamp": cache_key, "checksum": storage.array_fingerprint(arrays)}:
        return None
    return arrays


def _cache_key(
    run: Run, description: ExpertDescription, prepared: TokenizedRows, paths: Sequence[str]
) -> str:
    tokens = {
        name: np.concatenate([np.append(row, 0) for row in rows]).astype(np.int32)
        for name, rows in (("inputs", prepared.inputs), ("targets", prepared.targets))
    }
    parts = {"base": run.base.fingerprint, "expert": description.checksum, "wanted": sorted(paths)}
    if run.dtype is not None:
        parts["dtype"] = run.dtype
    return storage.fingerprint(parts | {"rows": storage.array_fingerprint(tokens)})


def _file(workspace: Workspace, expert: str, name: str) -> epath.Path:
    dataset, prompt = names.split_id(expert)
    folder = workspace.statistics / names.directory_name(dataset) / names.directory_name(prompt)
    return folder / f"{name}.safetensors"
