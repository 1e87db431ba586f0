"""The whole path: a base, its experts and the multitask baseline, keys, routes, merges, scores, report.

`elm quickstart` runs it on the embedded suite; a gin recipe runs it on any tasks. Every stage keeps what it
made in the workspace and does nothing that is done, so a run that was stopped goes on where it was.
"""

from collections.abc import Sequence
from dataclasses import replace

from elm_jax import storage
from elm_jax.data import task_rows, task_selection
from elm_jax.evaluation.evaluate import Outcome, evaluate
from elm_jax.experts import keys as formats
from elm_jax.records import TaskSpec
from elm_jax.routing.index import TEXT_FORMAT, index, require_embedder
from elm_jax.scoring.scorer import BATCH_TOKENS
from elm_jax.session import opening, settings
from elm_jax.session.workspace import DEFAULT, Workspace
from elm_jax.tasks import data_source
from elm_jax.telemetry.progress import Stages
from elm_jax.training import pretraining as pretraining_module
from elm_jax.training.config import Budget
from elm_jax.training.train import train_experts, train_multitask

MULTITASK = "baseline"


def run(
    *,
    train_tasks: Sequence[str],
    eval_tasks: Sequence[str],
    out: storage.PathLike = DEFAULT,
    initial_checkpoint: storage.PathLike | None = None,
    pretraining: pretraining_module.Pretraining | None = None,
    budget: Budget | None = None,
    source: data_source.Source | None = None,
    lengths: data_source.Lengths | None = None,
    train_rows: int | None = None,
    keys: int = formats.KEYS_PER_EXPERT,
    queries: int = formats.QUERIES_PER_TASK,
    text_format: str = TEXT_FORMAT,
    embedder: str | None = None,
    dtype: str | None = None,
    methods: Sequence[str] | None = None,
    merged: int = 3,
    batch_tokens: int = BATCH_TOKENS,
    base_texts: Sequence[str] | None = None,
    title: str = "Retrieval of experts",
    note: str = "",
    seed: int = 0,
    stages: Stages | None = None,
) -> Outcome:
    """Trains experts on `train_tasks` and compares ways to use them on `eval_tasks`.

    Tasks are named by id, dataset or group. `initial_checkpoint` is a base's directory; without it a base is
    trained from scratch on `base_texts`, or on the inputs of the training tasks. `train_rows` is how many
    rows of each task are trained on at most, the source's limit how many are scored. `keys` and `queries` are
    the paper's S and Q. `methods` are as `evaluation.methods` reads them; without them those of
    `methods.default`, of which `roe_top<merged>_merge` averages `merged` experts.
    `embedder` is what keys and queries are embedded with, as `index` has it. `dtype` is what the base
    is held and computes in, as `open_run` has it.
    Raises UserError for anything a user can mend.
    """
    require_embedder(embedder)
    stages = stages or Stages()
    source, budget = source or data_source.Source(), budget or Budget()
    if source.prepared is None:
        source = replace(source, prepared=Workspace(storage.path(out)).prepared)
    trained_on = replace(source, limit=train_rows)
    train_specs = task_selection.choose(train_tasks, source)
    eval_specs = task_selection.choose(eval_tasks, source, evaluation=True)
    if initial_checkpoint is None:
        workspace = Workspace.open(out, create=True)
        with stages.stage("read and render tasks", 1):
            texts = base_texts or _inputs(train_specs, trained_on)
            words = [*_words(train_specs, trained_on), *_words(eval_specs, source)]
        how = pretraining or pretraining_module.Pretraining()
        pretraining_module.pretrain(workspace, texts, words, how, seed=seed, stages=stages)
    settings.remember(Workspace.open(out, create=True), initial_checkpoint, source, lengths, dtype)
    run = opening.open_run(out, source=trained_on, lengths=lengths, stages=stages)
    experts = train_experts(run, train_specs, budget, seed=seed)
    train_multitask(run, train_specs, MULTITASK, budget, seed=seed)
    index(run, experts=experts, size=keys, text_format=text_format, embedder=embedder)
    outcome = evaluate(
        replace(run, source=source),
        eval_specs,
        experts=experts,
        methods=methods,
        queries=queries,
        merged=merged,
        batch_tokens=batch_tokens,
        oracle=True,
        environment={"title": title, "note": note, "seed": seed, "budget": vars(budget)},
    )
    if outcome is None:
        raise AssertionError("one host alone runs the whole path")
    return outcome


def _inputs(specs: Sequence[TaskSpec], source: data_source.Source) -> list[str]:
    return list(
        dict.fromkeys(example.input for spec in specs for example in task_rows.examples(spec, source))
    )


def _words(specs: Sequence[TaskSpec], source: data_source.Source) -> list[str]:
    """Everything that the vocabulary must be able to write: inputs, choices and targets."""
    told: dict[str, None] = {}
    for spec in specs:
        for example in task_rows.examples(spec, source):
            told |= dict.fromkeys((example.input, example.target, *example.choices))
    return list(told)
