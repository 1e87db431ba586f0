"""`elm evaluate`: routes tasks, merges what was retrieved, scores every expert, and compares the methods.

The methods are the base alone, the multitask baseline where there is one, the best single expert and the
oracle (both picked in hindsight), the uniform merge of the whole library, and retrieval of experts with the
first of the vote or an average of its first few.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from elm_jax import storage
from elm_jax.engine.evaluate import BATCH_TOKENS
from elm_jax.errors import ContaminationError, UserError
from elm_jax.library import keys as formats
from elm_jax.library.store import Library
from elm_jax.records import Report, TaskSpec
from elm_jax.runs import base as bases
from elm_jax.runs import data
from elm_jax.runs import report as reports
from elm_jax.runs import scores as scoring
from elm_jax.runs.merge import merge
from elm_jax.runs.route import route
from elm_jax.runs.workspace import DEFAULT, Run
from elm_jax.tasks.specs import task_specs


@dataclass(frozen=True)
class Outcome:
    """What an evaluation gave: the report, its files and where the time went."""

    report: Report
    files: Mapping[str, epath.Path]
    seconds: Mapping[str, float]


def evaluate(
    *,
    tasks: Sequence[str],
    out: storage.PathLike = DEFAULT,
    initial_checkpoint: storage.PathLike | None = None,
    source: data.Source | None = None,
    lengths: data.Lengths | None = None,
    queries: int = formats.QUERIES_PER_TASK,
    merged: int = 3,
    batch_tokens: int = BATCH_TOKENS,
) -> Outcome:
    """Compares every method on tasks named by id, dataset or group, with the experts in `out`."""
    run = bases.open_run(out, initial_checkpoint=initial_checkpoint, source=source, lengths=lengths)
    specs = data.choose(tasks, run.source, evaluation=True)
    return compare(run, specs, queries=queries, merged=merged, batch_tokens=batch_tokens)


def compare(
    run: Run,
    specs: Sequence[TaskSpec],
    *,
    experts: Sequence[str] | None = None,
    queries: int = formats.QUERIES_PER_TASK,
    merged: int = 3,
    batch_tokens: int = BATCH_TOKENS,
    environment: Mapping[str, Any] | None = None,
) -> Outcome:
    """Compares every method on the tasks and writes the report.

    `experts` are those of the library to use, all without it; `merged` is how many of the retrieved ones
    `roe_top<merged>_merge` averages. What was scored before is not scored again.
    """
    library = Library.open(run.workspace.library)
    experts = list(experts or library.ids())
    if not experts:
        raise UserError("An evaluation wants experts, but the library has none. Train some with `elm train`.")
    tasks = [spec.id for spec in specs]
    refuse_contaminated(library, experts, specs)
    with run.stages.stage("route", 2) as advance:
        top = route(run, specs, queries=queries, experts=1)
        advance(1, "")
        several = route(run, specs, queries=queries, experts=merged)
    with run.stages.stage("merge", 1):
        uniform = merge(run, list(dict.fromkeys(experts))).spec.id
        retrieved = {selection.task: merge(run, list(selection.weights)).spec.id for selection in several}
    composites = Library.open(run.workspace.composites)
    multitask = next((found for found in composites.ids() if found.startswith("multitask/")), None)

    methods: dict[str, dict[str, str]] = {"base": dict.fromkeys(tasks, scoring.BASE)}
    if multitask:
        methods["multitask"] = dict.fromkeys(tasks, multitask)
    methods["uniform_merge"] = dict.fromkeys(tasks, uniform)
    methods["roe_top1"] = {selection.task: next(iter(selection.weights)) for selection in top}
    methods[f"roe_top{merged}_merge"] = retrieved
    wanted = {task: [*(chosen[task] for chosen in methods.values()), *experts] for task in tasks}
    scores = scoring.score(run, wanted, specs, batch_tokens=batch_tokens)
    best = scoring.best_overall(scores, experts, tasks)
    methods["best_single"] = dict.fromkeys(tasks, best)
    methods["oracle"] = scoring.best_each(scores, experts, tasks)

    retrieval = [method for method in methods if method.startswith("roe_")]
    pairs = [(method, "base") for method in methods if method not in ("base", "best_single", "oracle")]
    pairs += [(method, "multitask") for method in retrieval if multitask]
    with run.stages.stage("compare and report", 1):
        made, files = reports.report(
            scoring.by_method(scores, methods),
            pairs,
            [*top, *several],
            [scores[task, expert] for expert in experts for task in tasks],
            workspace=run.workspace,
            environment={
                "base": run.base.fingerprint,
                "network": vars(run.base.config),
                "best_single": best,
                **(environment or {}),
                "seconds": reports.store_seconds(run.workspace, run.stages.seconds),
            },
            families={spec.id: spec.family or spec.dataset for spec in task_specs()},
        )
    return Outcome(made, files, dict(run.stages.seconds))


def refuse_contaminated(library: Library, experts: Sequence[str], specs: Sequence[TaskSpec]) -> None:
    """Raises if an expert was trained on a dataset that it is to be called unseen on."""
    targets = {spec.dataset for spec in specs}
    for expert in experts:
        seen = sorted(targets & set(library.spec(expert).datasets))
        if seen:
            raise ContaminationError(
                f"Zero-shot evaluation wants datasets that no expert was trained on, but {expert!r} was "
                f"trained on {', '.join(seen)}. Leave out that task or that expert."
            )
