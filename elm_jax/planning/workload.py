"""Workloads: what a recipe asks for, counted without the base's weights.

Rows of the catalogue's datasets come from the catalogue, which knows the size of every split; those of tasks
of one's own are counted. How long rows are is not known before they are tokenised, so lengths are assumed,
and the plan says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import gin
import numpy as np

from elm_jax.data import task_selection
from elm_jax.errors import UserError
from elm_jax.evaluation import evaluate, methods
from elm_jax.experts.library import Library
from elm_jax.launch import recipes
from elm_jax.models.sizes import T5Config
from elm_jax.pipelines import pipeline
from elm_jax.planning.networks import network_of
from elm_jax.records import TaskSpec
from elm_jax.scoring.scorer import BATCH_TOKENS
from elm_jax.session.workspace import Workspace
from elm_jax.tasks import data_source, datasets, raw_rows
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.training import config, train
from elm_jax.training.batches import Known
from elm_jax.training.config import Budget, Course
from elm_jax.training.jobs import Job
from elm_jax.training.pretraining import Pretraining

PROMPT_SHARE = 0.6  # of a prompt's feature length that a prompt has on average: assumed
ANSWER_SHARE = 0.15  # of an answer's: words rather than texts
EXPERTS = 296  # the paper's prompt experts, where a run that is to be evaluated is not here
DRAWN = 2048  # rows of an expert whose lengths are drawn, at most


@dataclass(frozen=True)
class Asked:
    """What the command line says beside the recipe; None is what the recipe or the catalogue says."""

    size: str | None = None
    dtype: str = "bfloat16"
    rows: int | None = None  # of each task whose data is not here
    experts: int | None = None  # of the library that is evaluated


@dataclass(frozen=True)
class TrainingLoad:
    """What a recipe trains.

    Attributes:
        known: a job for each expert, with the lengths of rows that stand for its own.
        network: the base.
        budget: how it trains.
        mesh: sizes by axis, if the recipe has them.
        assumed: what is not known, and what it was taken to be.
    """

    known: tuple[Known, ...]
    network: T5Config
    budget: Budget
    mesh: Mapping[str, int] | None
    assumed: tuple[str, ...]


@dataclass(frozen=True)
class ScoringLoad:
    """What a recipe scores.

    Attributes:
        tasks: how many.
        rows: of all tasks.
        experts: in the library.
        scorers: that work on every row: the base, an expert a method, and with an oracle every expert.
        ways: how rows are scored: "stack", "full" or "gate", each a program.
        network: the base.
        batch_tokens: that a device scores at once.
        lengths: the longest prompt and answers of a row.
        prompt: tokens of a prompt, on average.
        nodes: tokens of all distinct beginnings of a row's choices, on average.
        queries: inputs of a task that a router looks at.
        generates: whether a task is answered in free text.
        kind: of the experts.
        options: of their kind.
        assumed: what is not known, and what it was taken to be.
    """

    tasks: int
    rows: int
    experts: int
    scorers: int
    ways: tuple[str, ...]
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


def read(recipe: str, bindings: Sequence[str], asked: Asked) -> list[TrainingLoad | ScoringLoad]:
    """Returns what a recipe trains and what it scores.

    Raises:
        UserError: the recipe does not read, trains and evaluates nothing, or has rows that nobody counted.
    """
    recipes.load([recipe], bindings)
    found: list[TrainingLoad | ScoringLoad] = []
    if bound := _bound(train.train):
        found.append(_training(bound, asked))
    if bound := _bound(evaluate.evaluate):
        found.append(_scoring(bound, asked))
    if bound := _bound(pipeline.run):
        found += _pipeline(bound, asked)
    if not found:
        raise UserError(
            f"Expected a recipe that trains or evaluates, got {recipe!r}, which does neither. Fix: name one "
            "that does, as gin/recipes/all_prompt_experts.gin."
        )
    return found


def _bound(function: Any) -> dict[str, Any]:
    """Returns what a recipe binds to a function's parameters, if it does."""
    try:
        return dict(gin.get_bindings(function, resolve_references=True))
    except ValueError:  # gin has not heard of it
        return {}


def _training(bound: Mapping[str, Any], asked: Asked) -> TrainingLoad:
    network, assumed = network_of(bound.get("initial_checkpoint"), asked.size, asked.dtype)
    source, budget = bound.get("source") or Source(), bound.get("budget") or Budget()
    lengths = bound.get("lengths") or (None if budget.paper else Lengths())
    chosen = config.courses(
        task_selection.choose(bound["tasks"], source),
        budget,
        as_=bound.get("as_", "experts"),
        name=bound.get("name"),
        lengths=lengths,
    )
    jobs = tuple(_job(course, source, asked, seed) for seed, course in enumerate(chosen))
    if not any(each.job.steps for each in jobs):
        raise UserError(
            "Expected a recipe that trains, got one of no tasks or no steps. Fix: give MIXTURE_OR_TASK_NAME "
            "and TRAIN_STEPS, as --gin.TRAIN_STEPS=100."
        )
    # The longest rows first, as training has them.
    jobs = tuple(sorted(jobs, key=lambda each: (-int(each.prompt.max()), each.job.id)))
    return TrainingLoad(jobs, network, budget, bound.get("mesh"), (*assumed, _assumed_lengths()))


def _job(course: Course, source: Source, asked: Asked, seed: int) -> Known:
    """Returns a course as a job whose rows have assumed lengths, a few rows standing for many."""
    own = config.source_of(course, source)
    rows = sum(_rows(spec, own, asked) for spec in course.specs)
    drawn = max(1, min(rows, DRAWN))
    prompts = _lengths(course.lengths.prompt, PROMPT_SHARE, drawn, seed)
    targets = _lengths(course.lengths.answer, ANSWER_SHARE, drawn, seed + 1)
    tokens: list[tuple[int, ...]] = [()] * drawn  # lengths alone are asked for
    job = Job(course.id, tokens, tokens, course.steps_on(rows), course.rate, seed, course.batch_size)
    return Known(job, prompts, targets)


def _lengths(longest: int, share: float, rows: int, seed: int) -> np.ndarray:
    """Returns lengths spread evenly about their mean, a share of the longest, which one of them has."""
    low = max(1, round((2 * share - 1) * longest)) if share > 0.5 else max(1, round(share * longest / 3))
    high = max(low, min(longest, round(2 * share * longest) - low))
    drawn = np.linspace(low, high, rows).round().astype(np.int32)
    drawn[-1] = longest
    return np.random.default_rng(seed).permutation(drawn)


def _scoring(bound: Mapping[str, Any], asked: Asked) -> ScoringLoad:
    network, assumed = network_of(None, asked.size, asked.dtype)
    run, source, lengths = bound.get("run"), Source(), Lengths()
    experts, described = asked.experts, None
    if run is not None and experts is None and Workspace.at(run).library.is_dir():
        library = Library.open(Workspace.at(run).library)
        experts = len(library.ids())
        described = library.describe(library.ids()[0]) if experts else None
    if experts is None:
        experts, assumed = EXPERTS, (*assumed, f"{EXPERTS} experts in the library")
    elif experts < 1 and _wants_experts(bound):
        raise UserError(
            f"Expected experts to evaluate, got {experts}. Fix: give the run that has them as MODEL_DIR, or "
            "how many there will be, as --experts 296."
        )
    kind, options = ("bottleneck", {}) if described is None else _kind_of(described.spec)
    return _scored(
        task_selection.choose(bound["tasks"], source, evaluation=True),
        source,
        network,
        experts,
        asked,
        texts=bound.get("methods"),
        oracle=bool(bound.get("oracle")),
        calibrated=bound.get("by") == "calibrated",
        queries=bound.get("queries") or 32,
        batch_tokens=bound.get("batch_tokens") or BATCH_TOKENS,
        lengths=lengths,
        kind=kind,
        options=options,
        assumed=assumed,
    )


def _pipeline(bound: Mapping[str, Any], asked: Asked) -> list[TrainingLoad | ScoringLoad]:
    """Returns what a recipe of the whole path trains and scores."""
    source, budget = bound.get("source") or Source(), bound.get("budget") or Budget()
    lengths: Lengths = bound.get("lengths") or Lengths()
    base = bound.get("initial_checkpoint")
    if base is None and asked.size is None:  # it is trained from scratch
        asked = replace(asked, size=(bound.get("pretraining") or Pretraining()).size)
    trained_on = replace(source, limit=bound.get("train_rows"))
    given = {"tasks": bound["train_tasks"], "initial_checkpoint": base, "mesh": bound.get("mesh")}
    how = {"source": trained_on, "budget": budget, "lengths": lengths}
    trained = _training({**given, **how}, asked)
    tasks = task_selection.choose(bound["eval_tasks"], source, evaluation=True)
    return [
        trained,
        _scored(
            tasks,
            source,
            trained.network,
            len(trained.known),
            asked,
            texts=bound.get("methods"),
            oracle=True,
            calibrated=False,
            queries=bound.get("queries") or 32,
            batch_tokens=bound.get("batch_tokens") or BATCH_TOKENS,
            lengths=lengths,
            kind=budget.kind,
            options=budget.options,
            assumed=trained.assumed,
        ),
    ]


def _scored(
    specs: Sequence[TaskSpec],
    source: Source,
    network: T5Config,
    experts: int,
    asked: Asked,
    *,
    texts: Sequence[str] | None,
    oracle: bool,
    calibrated: bool,
    lengths: Lengths,
    kind: str,
    assumed: Sequence[str],
    **told: Any,
) -> ScoringLoad:
    wanted = methods.parse_all(texts) if texts else methods.default()
    oracle = oracle or any(each.router in methods.HINDSIGHT for each in wanted)
    # What a router chooses is scored already where every expert is; what is merged of several is not.
    others = [each for each in wanted if each.router not in ("base", *methods.HINDSIGHT)]
    own = [each for each in others if each.merge or each.router == "multitask" or each.level == "token"]
    scorers = (1 + (len(own) + experts if oracle else len(others))) * (2 if calibrated else 1)
    ways = ["full" if kind == "full" else "stack"]
    if any(each.level == "token" for each in wanted):
        ways.append("gate")
    return ScoringLoad(
        tasks=len(specs),
        rows=sum(_rows(spec, source, asked) for spec in specs),
        experts=experts,
        scorers=scorers,
        ways=tuple(ways),
        network=network,
        lengths=lengths,
        prompt=round(PROMPT_SHARE * lengths.prompt),
        nodes=max(1, round(ANSWER_SHARE * lengths.answer)),
        generates=any(spec.metric != "accuracy" for spec in specs),
        kind=kind,
        assumed=(*assumed, _assumed_lengths()),
        **told,
    )


def _wants_experts(bound: Mapping[str, Any]) -> bool:
    wanted = methods.parse_all(bound.get("methods") or ())
    return not wanted or any(each.router != "base" for each in wanted)


def _kind_of(spec: Any) -> tuple[str, Mapping[str, Any]]:
    return spec.kind, spec.recipe.get("options", {})


def _rows(spec: TaskSpec, source: Source, asked: Asked) -> int:
    """Returns how many rows of a task are read: those of its split, no more than the source takes."""
    split = data_source.split_of(spec, source)
    found = datasets.datasets().get(spec.dataset)
    count = found.splits.get(split) if found else None
    limit = source.limit
    if limit is None and found and found.training and split == found.split:
        limit = datasets.training(found, spec.prompt).rows  # as `tasks.specs.load_rows` takes them
    if count is None and limit is None:
        count = asked.rows if asked.rows is not None else _counted(spec, source, split)
    return min(each for each in (count, limit) if each is not None)


def _counted(spec: TaskSpec, source: Source, split: str) -> int:
    """Counts the rows of a task of one's own, whose data is here."""
    try:
        return len(raw_rows.load_rows(spec, source))
    except UserError as error:
        raise UserError(
            f"Expected to know the rows of {spec.id!r}, got none: the catalogue does not know how many its "
            f"{split!r} split has, and its data does not read ({str(error).rstrip('.')}). Fix: give them as "
            "--rows 10000, or as --gin.MAX_TRAIN_SAMPLES=10000."
        ) from error


def _assumed_lengths() -> str:
    return f"prompts of {PROMPT_SHARE:.0%} and answers of {ANSWER_SHARE:.0%} of their feature length"
