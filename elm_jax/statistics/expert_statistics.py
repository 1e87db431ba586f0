"""Statistics of an expert's own training data, computed once and kept in the run's directory.

RegMean and Fisher merge by them, and routers know experts by what entered their projections. They come from a
few of the rows that the expert was trained on, with the expert in place; labels are the rows' own.
"""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np
from etils import epath

from elm_jax import names, storage
from elm_jax.data import task_rows, task_selection
from elm_jax.data.prepared import Prepared
from elm_jax.errors import UserError
from elm_jax.experts import keys
from elm_jax.experts.files import Description
from elm_jax.experts.lookup import home
from elm_jax.records import Expert, ExpertSpec, PromptedExample, TaskSpec
from elm_jax.session.workspace import Run, Workspace
from elm_jax.statistics import estimators as engine
from elm_jax.tasks import data_source

ROWS = 256
"""Rows of an expert that statistics are taken of, or all it has."""
FOLDER = "statistics"
METHODS = {"regmean": engine.regmean, "fisher": engine.fisher}
Flat = dict[str, np.ndarray]
Compute = Callable[[Expert, Prepared], Flat]


def trained_on(spec: ExpertSpec, source: data_source.Source) -> list[TaskSpec]:
    """Returns the tasks that an expert was trained on: those its recipe names, or the one it is called after.

    Raises a UserError where they are not known, as of an expert that was merged.
    """
    try:
        return [task_selection.find(task, source) for task in spec.recipe.get("tasks", [spec.id])]
    except UserError as error:
        raise UserError(f"The training rows of expert {spec.id!r} are wanted. {error}") from None


def by_parts(spec: ExpertSpec) -> ExpertSpec:
    """Returns a merged expert as if it was trained on what its parts are called after; another as it is."""
    parts = spec.recipe.get("merged_from")
    return replace(spec, recipe={"tasks": parts}) if parts else spec


def may_have_keys(spec: ExpertSpec, source: data_source.Source) -> bool:
    """Says whether the tasks are known that an expert's keys are made of: its own, or those of its parts."""
    try:
        return bool(trained_on(by_parts(spec), source))
    except UserError:
        return False


def say_passed_over(run: Run, experts: Sequence[str]) -> None:
    """Says that experts for which no keys can be made are passed over, if there are any."""
    if experts:
        run.stages.console.print(
            f"Passed over, for the tasks that keys are made of are not known: {', '.join(experts)}.",
            highlight=False,
            markup=False,
        )


def rows_of(
    spec: ExpertSpec, source: data_source.Source, size: int
) -> list[tuple[TaskSpec, PromptedExample]]:
    """Returns a sample of the rows that an expert was trained on, as many of each of its tasks."""
    tasks = trained_on(spec, source)
    shares = [size // len(tasks) + (number < size % len(tasks)) for number in range(len(tasks))]
    return [
        (task, example)
        for task, share in zip(tasks, shares, strict=True)
        if share
        for example in keys.sample(task_rows.examples(task, source), share, source.seed)
    ]


def of_method(
    run: Run,
    experts: Sequence[str],
    method: str,
    wanted: Collection[str],
    *,
    rows: int = ROWS,
) -> list[Flat]:
    """Returns what a merging method reads of each expert's data at the paths wanted, by path.

    What was computed before is read, and what is missing is computed.
    """
    compute = METHODS[names.resolve(method, METHODS, kind="method", where="those that read statistics")]
    base = run.base

    def one(expert: Expert, found: Prepared) -> Flat:
        return compute(base.config, base.params, expert, *_tokens(found), wanted)

    with run.stages.stage(f"statistics for {method}", len(experts)) as advance:
        made = []
        for done, expert in enumerate(experts, start=1):
            made.append(_kept(run, expert, method, rows, list(wanted), one))
            advance(done, expert)
    return made


def mean_inputs(run: Run, expert: str, *, rows: int = ROWS) -> Flat:
    """Returns the mean of what enters each projection that a LoRA expert changes: path -> [L, I].

    Raises a UserError if the expert is no LoRA.
    """
    owned = home(run.workspace, expert).spec(expert).paths
    wanted = sorted({path.removesuffix("/lora_a") for path in owned if path.endswith("/lora_a")})
    if not wanted:
        raise UserError(
            f"A LoRA expert is wanted, whose projections tokens are compared at, but {expert!r} is none. "
            "Train experts with `--kind lora`, or choose another router."
        )

    def one(expert: Expert, found: Prepared) -> Flat:
        return engine.input_means(run.base.config, run.base.params, expert, *_tokens(found), wanted)

    return _kept(run, expert, "inputs", rows, wanted, one)


def _tokens(found: Prepared) -> tuple[engine.Tokens, engine.Tokens]:
    return list(found.inputs), list(found.targets)


def _kept(run: Run, expert: str, what: str, rows: int, wanted: Sequence[str], compute: Compute) -> Flat:
    """Returns an expert's statistics from their file if that is of this very expert and these rows."""
    library = home(run.workspace, expert)
    description = library.describe(expert)
    examples = [example for _, example in rows_of(description.spec, run.source, rows)]
    found = task_rows.prepare(examples, run.pieces, _lengths(run, description.spec))
    stamp = _stamp(run, description, found, wanted)
    file = _file(run.workspace, expert, what)
    kept = _read(file, stamp)
    if kept is None:
        kept = compute(library.expert(expert, base=run.base.fingerprint), found)
        about = json.dumps({"stamp": stamp, "checksum": storage.array_fingerprint(kept)}).encode()
        storage.write_arrays(file, {**kept, "about": np.frombuffer(about, np.uint8)})
    return kept


def _lengths(run: Run, spec: ExpertSpec) -> data_source.Lengths:
    """Returns how long the rows were that an expert was trained on, or the run's where it does not tell."""
    told = spec.recipe
    return data_source.Lengths(
        told.get("max_prompt", run.lengths.prompt), told.get("max_answer", run.lengths.answer)
    )


def _read(file: epath.Path, stamp: str) -> Flat | None:
    """Returns what a file holds, None if there is none or it is of something else, or damaged."""
    try:
        found = storage.read_arrays(file, what="Statistics")
        about = json.loads(found.pop("about").tobytes())
    except (UserError, KeyError, ValueError):
        return None
    if about != {"stamp": stamp, "checksum": storage.array_fingerprint(found)}:
        return None
    return found


def _stamp(run: Run, description: Description, found: Prepared, wanted: Sequence[str]) -> str:
    tokens = {
        name: np.concatenate([np.append(row, 0) for row in rows]).astype(np.int32)
        for name, rows in (("inputs", found.inputs), ("targets", found.targets))
    }
    told = {"base": run.base.fingerprint, "expert": description.checksum, "wanted": sorted(wanted)}
    if run.dtype is not None:
        told["dtype"] = run.dtype
    return storage.fingerprint(told | {"rows": storage.array_fingerprint(tokens)})


def _file(workspace: Workspace, expert: str, what: str) -> epath.Path:
    dataset, prompt = names.split_id(expert)
    folder = workspace.root / FOLDER / names.directory_name(dataset) / names.directory_name(prompt)
    return folder / f"{what}.safetensors"
