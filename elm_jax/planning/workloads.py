"""Workloads: what a recipe trains and scores, counted without the base's weights.

The catalogue knows how many rows every split of its datasets has; rows of the user's own tasks are counted.
Lengths of rows are not known before they are tokenized, so they are assumed, and the plan says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import gin
import numpy as np

from elm_jax import moved
from elm_jax.data import task_selection
from elm_jax.errors import UserError
from elm_jax.evaluation import evaluate, methods
from elm_jax.evaluation.config import EvaluationConfig
from elm_jax.evaluation.ensembles import ENSEMBLE
from elm_jax.experts.library import Library
from elm_jax.launch import recipes
from elm_jax.models.sizes import T5Config
from elm_jax.pipelines import pipeline
from elm_jax.pipelines.pipeline import PipelineConfig
from elm_jax.planning.networks import find_network
from elm_jax.records import TaskSpec
from elm_jax.scoring import rank
from elm_jax.session.workspace import Workspace
from elm_jax.tasks import data_source, datasets, raw_rows
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.training import expert_configs, train
from elm_jax.training.batches import JobWithLengths
from elm_jax.training.config import TrainConfig
from elm_jax.training.expert_configs import ExpertTrainConfig
from elm_jax.training.jobs import TrainingJob

PROMPT_SHARE = 0.6  # mean length of prompts, as a share of their feature length: assumed
ANSWER_SHARE = 0.15  # mean length of answers, which are words rather than texts: assumed
DEFAULT_EXPERTS = 296  # the paper's prompt experts, if the library to evaluate does not exist yet
MAX_DRAWN_ROWS = 2048  # the most rows of an expert whose lengths are drawn


@dataclass(frozen=True)
class PlanOptions:
    """What the command line sets besides the recipe; None takes the value of the recipe or the catalogue.

    Attributes:
        size: The size of the base, such as "xl".
        dtype: The type of the base's parameters.
        rows: The rows of each task that the catalogue does not know.
        experts: How many experts the evaluated library has.
    """

    size: str | None = None
    dtype: str = "bfloat16"
    rows: int | None = None
    experts: int | None = None


@dataclass(frozen=True)
class TrainingWorkload:
    """What a recipe trains.

    Attributes:
        measured: a job for each expert, with assumed lengths of its rows.
        network: the base.
        config: the configuration of the training.
        assumed: what is unknown, and what was assumed.
    """

    measured: tuple[JobWithLengths, ...]
    network: T5Config
    config: TrainConfig
    assumed: tuple[str, ...]


@dataclass(frozen=True)
class ScoringWorkload:
    """What a recipe scores.

    Attributes:
        tasks: how many tasks.
        rows: how many rows of all tasks.
        experts: how many experts in the library.
        scorers: how many score every row: the base, one for each method, and with an oracle every expert.
        modes: how rows are scored, a program each: "stack", "full" or "gate".
        network: the base.
        batch_tokens: how many tokens a device scores at once.
        lengths: the longest prompt and answers of a row.
        prompt: tokens of a prompt, on average.
        nodes: tokens of all distinct beginnings of a row's choices, on average.
        queries: how many inputs of a task a router reads.
        generates: whether a task is answered in free text.
        kind: of the experts.
        plan_options: of their kind.
        assumed: what is unknown, and what was assumed.
    """

    tasks: int
    rows: int
    experts: int
    scorers: int
    modes: tuple[str, ...]
    network: T5Config
    batch_tokens: int
    lengths: Lengths
    prompt: int
    nodes: int
    queries: int
    generates: bool
    kind: str = "bottleneck"
    options: Mapping[str, Any] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()


def read_workloads(
    recipe: str, bindings: Sequence[str], plan_options: PlanOptions
) -> list[TrainingWorkload | ScoringWorkload]:
    """Returns what a recipe trains and what it scores.

    Raises:
        UserError: If the recipe cannot be read, trains and evaluates nothing, or has rows that are unknown.
    """
    recipes.load([recipe], bindings)
    found: list[TrainingWorkload | ScoringWorkload] = []
    if bound := _read_bindings(train.train):
        found.append(_training_workload(bound, plan_options))
    if bound := _read_bindings(evaluate.evaluate):
        found.append(_scoring_workload(bound, plan_options))
    if bound := _read_bindings(pipeline.run_pipeline):
        found += _pipeline_workloads(bound, plan_options)
    if not found:
        raise UserError(
            f"Expected a recipe that trains or evaluates, got {recipe!r}, which does neither. Fix: name one "
            "that does, as gin/recipes/all_prompt_experts.gin."
        )
    return found


def _read_bindings(function: Any) -> dict[str, Any]:
    """Returns what a recipe binds to a function's parameters; {} if it does not."""
    try:
        with recipes.plain_errors():
            bindings = dict(gin.get_bindings(function, resolve_references=True))
        return moved.with_old_parameters(function, bindings) if hasattr(function, "moved") else bindings
    except ValueError:  # gin does not know the function
        return {}


def _training_workload(bound: Mapping[str, Any], plan_options: PlanOptions) -> TrainingWorkload:
    network, assumed = find_network(bound.get("initial_checkpoint"), plan_options.size, plan_options.dtype)
    source, config = bound.get("source") or Source(), bound.get("config") or TrainConfig()
    lengths = bound.get("lengths") or (None if config.paper else Lengths())
    experts = expert_configs.resolve_experts(
        task_selection.select_tasks(bound["tasks"], source), config, lengths
    )
    jobs = tuple(_make_job(expert, source, plan_options, seed) for seed, expert in enumerate(experts))
    if not any(each.job.steps for each in jobs):
        raise UserError(
            "Expected a recipe that trains, got one of no tasks or no steps. Fix: give MIXTURE_OR_TASK_NAME "
            "and TRAIN_STEPS, as --gin.TRAIN_STEPS=100."
        )
    # The longest rows first, as training has them.
    jobs = tuple(sorted(jobs, key=lambda each: (-int(each.prompt.max()), each.job.id)))
    return TrainingWorkload(jobs, network, config, (*assumed, _describe_assumed_lengths()))


def _make_job(
    expert: ExpertTrainConfig, source: Source, plan_options: PlanOptions, seed: int
) -> JobWithLengths:
    """Returns an expert's job whose rows have assumed lengths, with a sample in place of many rows."""
    own = expert_configs.training_source(expert, source)
    rows = sum(_count_rows(spec, own, plan_options) for spec in expert.specs)
    drawn = max(1, min(rows, MAX_DRAWN_ROWS))
    prompts = _draw_lengths(expert.lengths.prompt, PROMPT_SHARE, drawn, seed)
    targets = _draw_lengths(expert.lengths.answer, ANSWER_SHARE, drawn, seed + 1)
    tokens: list[tuple[int, ...]] = [()] * drawn  # only lengths are used
    job = TrainingJob(expert.id, tokens, tokens, replace(expert.config_for(rows), seed=seed))
    return JobWithLengths(job, prompts, targets)


def _draw_lengths(longest: int, share: float, rows: int, seed: int) -> np.ndarray:
    """Returns lengths evenly spread around their mean, a share of the longest; one has the longest."""
    low = max(1, round((2 * share - 1) * longest)) if share > 0.5 else max(1, round(share * longest / 3))
    high = max(low, min(longest, round(2 * share * longest) - low))
    drawn = np.linspace(low, high, rows).round().astype(np.int32)
    drawn[-1] = longest
    return np.random.default_rng(seed).permutation(drawn)


def _scoring_workload(bound: Mapping[str, Any], plan_options: PlanOptions) -> ScoringWorkload:
    network, assumed = find_network(None, plan_options.size, plan_options.dtype)
    config: EvaluationConfig = bound.get("config") or EvaluationConfig()
    run, source, lengths = bound.get("run"), Source(), Lengths()
    experts, described = plan_options.experts, None
    if run is not None and experts is None and Workspace.at(run).library.is_dir():
        library = Library.open(Workspace.at(run).library)
        experts = len(library.ids())
        described = library.describe(library.ids()[0]) if experts else None
    if experts is None:
        experts, assumed = DEFAULT_EXPERTS, (*assumed, f"{DEFAULT_EXPERTS} experts in the library")
    elif experts < 1 and _needs_experts(config):
        raise UserError(
            f"Expected experts to evaluate, got {experts}. Fix: give the run that has them as MODEL_DIR, or "
            "how many there will be, as --experts 296."
        )
    kind, options = ("bottleneck", {}) if described is None else _kind_of(described.spec)
    evaluation = _Evaluation(
        specs=task_selection.select_tasks(bound["tasks"], source, evaluation=True),
        source=source,
        network=network,
        experts=experts,
        config=config,
        lengths=lengths,
        kind=kind,
        options=options,
        assumed=assumed,
    )
    return _make_scoring_workload(evaluation, plan_options)


def _pipeline_workloads(
    bound: Mapping[str, Any], plan_options: PlanOptions
) -> list[TrainingWorkload | ScoringWorkload]:
    """Returns what a recipe of the whole pipeline trains and scores."""
    config: PipelineConfig = bound.get("config") or PipelineConfig()
    source, lengths, base = config.source, config.lengths or Lengths(), config.initial_checkpoint
    if base is None and plan_options.size is None:  # it is trained from scratch
        plan_options = replace(plan_options, size=config.pretraining.size)
    trained_on = replace(source, limit=config.train_rows)
    given = {"tasks": bound["train_tasks"], "initial_checkpoint": base}
    how = {"source": trained_on, "config": config.training, "lengths": lengths}
    trained = _training_workload({**given, **how}, plan_options)
    evaluation = _Evaluation(
        specs=task_selection.select_tasks(bound["eval_tasks"], source, evaluation=True),
        source=source,
        network=trained.network,
        experts=len(trained.measured),
        config=replace(config.evaluation, oracle=True),
        lengths=lengths,
        kind=config.training.expert.kind,
        options=config.training.expert.options,
        assumed=trained.assumed,
    )
    return [trained, _make_scoring_workload(evaluation, plan_options)]


@dataclass(frozen=True)
class _Evaluation:
    """What a recipe evaluates; fields as in `ScoringWorkload`."""

    specs: Sequence[TaskSpec]
    source: Source
    network: T5Config
    experts: int
    config: EvaluationConfig
    lengths: Lengths
    kind: str
    options: Mapping[str, Any]
    assumed: Sequence[str]


def _make_scoring_workload(evaluation: _Evaluation, plan_options: PlanOptions) -> ScoringWorkload:
    config, lengths = evaluation.config, evaluation.lengths
    selected = methods.parse_methods(config.methods) if config.methods else methods.default_methods()
    oracle = config.oracle or any(each.router in methods.HINDSIGHT_ROUTERS for each in selected)
    # With an oracle every expert is scored, so that a router's choice is scored too, but no merge is.
    others = [each for each in selected if each.router not in ("base", *methods.HINDSIGHT_ROUTERS)]
    merged = [each for each in others if each.merge not in (None, ENSEMBLE)]
    own = [each for each in others if each in merged or each.router == "multitask" or each.level == "token"]
    count = evaluation.experts
    each_alone = [each.options.get("experts", count) if each.merge == ENSEMBLE else 1 for each in others]
    scorers = 1 + (len(own) + count if oracle else sum(each_alone))
    modes = ["full" if evaluation.kind == "full" else "stack"]
    if any(each.level == "token" for each in selected):
        modes.append("gate")
    return ScoringWorkload(
        tasks=len(evaluation.specs),
        rows=sum(_count_rows(spec, evaluation.source, plan_options) for spec in evaluation.specs),
        experts=evaluation.experts,
        scorers=scorers * rank.count_passes(config.normalization),
        modes=tuple(modes),
        network=evaluation.network,
        batch_tokens=config.batch_tokens,
        lengths=lengths,
        prompt=round(PROMPT_SHARE * lengths.prompt),
        nodes=max(1, round(ANSWER_SHARE * lengths.answer)),
        queries=config.queries,
        generates=any(spec.metric != "accuracy" for spec in evaluation.specs),
        kind=evaluation.kind,
        options=evaluation.options,
        assumed=(*evaluation.assumed, _describe_assumed_lengths()),
    )


def _needs_experts(config: EvaluationConfig) -> bool:
    selected = methods.parse_methods(config.methods or ())
    return not selected or any(each.router != "base" for each in selected)


def _kind_of(spec: Any) -> tuple[str, Mapping[str, Any]]:
    return spec.kind, spec.recipe.get("options", {})


def _count_rows(spec: TaskSpec, source: Source, plan_options: PlanOptions) -> int:
    """Returns how many rows of a task are read: those of its split, up to the limit of the source."""
    split = data_source.get_split(spec, source)
    found = datasets.all_datasets().get(spec.dataset)
    count = found.splits.get(split) if found else None
    limit = source.limit
    if limit is None and found and found.training and split == found.split:
        limit = datasets.training(found, spec.prompt).rows  # as the reader of rows takes them
    if count is None and limit is None:
        count = plan_options.rows if plan_options.rows is not None else _count_own_rows(spec, source, split)
    return min(each for each in (count, limit) if each is not None)


def _count_own_rows(spec: TaskSpec, source: Source, split: str) -> int:
    """Counts the rows of the user's own task, whose data is here."""
    try:
        return len(raw_rows.load_rows(spec, source))
    except UserError as error:
        raise UserError(
            f"Expected to know the rows of {spec.id!r}, got none: the catalogue does not know how many its "
            f"{split!r} split has, and its data does not read ({str(error).rstrip('.')}). Fix: give them as "
            "--rows 10000, or as --gin.MAX_TRAIN_SAMPLES=10000."
        ) from error


def _describe_assumed_lengths() -> str:
    return f"prompts of {PROMPT_SHARE:.0%} and answers of {ANSWER_SHARE:.0%} of their feature length"
