"""Configurations of experts: which tasks each expert is trained on, and how, with nothing left open.

What a `TrainConfig` leaves open is the paper's, of the table that it names, or else a default.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.records import ExpertSpec, TaskSpec
from elm_jax.tasks import budgets, data_source, datasets
from elm_jax.tasks.budgets import PaperBudget
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.telemetry import trackers
from elm_jax.training import optimizers
from elm_jax.training.config import TrainConfig, replace_fields

T = TypeVar("T")

STEPS, BATCH_SIZE, LEARNING_RATE = 1000, 8, 1e-4
PAPER_TABLES = ("prompt", "dataset_adapter", "dataset", "target")
TRAIN_AS = ("experts", "dataset", "multitask")
ANSWER_MODES = ("first", "each")
MULTITASK = "multitask"  # the dataset in the id of an expert on several datasets
ALL_PROMPTS = "all"  # the prompt in the id of an expert on all prompts of a dataset


@dataclass(frozen=True)
class ExpertTrainConfig:
    """One expert's training, all but its rows.

    Attributes:
        id: of the expert.
        specs: tasks that it is trained on.
        config: with batch size and learning rate resolved, and either steps or epochs.
        lengths: tokens of a prompt and of an answer that are kept.
        max_rows: rows of each task that it is trained on, at most. None is all.
    """

    id: str
    specs: tuple[TaskSpec, ...]
    config: TrainConfig
    lengths: Lengths
    max_rows: int | None

    def config_for(self, rows: int) -> TrainConfig:
        """Returns the configuration with the steps that so many rows take.

        The last step of an epoch has the rows that are left.
        """
        schedule, size = self.config.schedule, self.config.batch.size
        if schedule.steps is not None:
            return self.config
        assert schedule.epochs is not None
        assert size is not None
        steps = math.ceil(schedule.epochs * math.ceil(rows / size))
        return replace_fields(self.config, {"steps": steps})


def resolve_experts(
    specs: Sequence[TaskSpec] | Mapping[str, Sequence[TaskSpec]],
    config: TrainConfig,
    lengths: Lengths | None = None,
) -> list[ExpertTrainConfig]:
    """Returns a configuration for each task, for each dataset or for all tasks, as the config says.

    Args:
        specs: tasks to train on; or id of an expert -> its tasks.
        config: what is given; the rest is the paper's or a default.
        lengths: of all experts. Default: the paper's, or 256 and 128 tokens.

    Raises:
        UserError: a name does not exist, steps and epochs are both given, the expert on all tasks has no
            name, the best step is to be kept without validation, the paper has no budget for a task, or
            there is no such part.
    """
    expert, schedule, checkpoint = config.expert, config.schedule, config.checkpoint
    names.resolve(expert.train_as, TRAIN_AS, kind="way to train", where="TRAIN_AS")
    names.resolve(config.answers, ANSWER_MODES, kind="choice of answers", where="ANSWERS")
    if config.paper is not None:
        names.resolve(config.paper, PAPER_TABLES, kind="table of budgets", where="PAPER")
    optimizers.require_schedule(schedule)
    names.resolve(config.optimizer.name, optimizers.OPTIMIZERS, kind="optimiser", where="elm_jax")
    trackers.require_trackers(config.log.trackers)
    if checkpoint.keep not in ("last", "best"):
        raise UserError(
            f"Expected 'last' or 'best' as the step to keep, got {checkpoint.keep!r}. Fix: set KEEP."
        )
    if checkpoint.keep == "best" and not checkpoint.validate_every:
        raise UserError(
            "Expected validation to find the best step, got none. Fix: set EVAL_PERIOD, or KEEP='last'."
        )
    if schedule.steps is not None and schedule.epochs is not None:
        raise UserError(
            f"Expected steps or epochs, got both: TRAIN_STEPS={schedule.steps} and EPOCHS={schedule.epochs}. "
            "Fix: set one of them to None."
        )
    if isinstance(specs, Mapping):
        experts = [_resolve(name, own, config, lengths) for name, own in specs.items()]
    elif expert.train_as == "multitask":
        if not expert.name:
            raise UserError(
                "Expected a name for the expert on all tasks, got none. Fix: set EXPERT_NAME, or give "
                "--multitask NAME."
            )
        return [_resolve(names.task_id(MULTITASK, expert.name), specs, config, lengths)]
    elif expert.train_as == "dataset":
        grouped: dict[str, list[TaskSpec]] = {}
        for spec in specs:
            grouped.setdefault(spec.dataset, []).append(spec)
        experts = [
            _resolve(names.task_id(each, ALL_PROMPTS), own, config, lengths) for each, own in grouped.items()
        ]
    else:
        experts = [_resolve(spec.id, [spec], config, lengths) for spec in specs]
    return select_expert_shard(experts, expert.part)


def select_expert_shard(experts: list[T], part: str | None) -> list[T]:
    """Returns every N-th expert from the I-th on, for the part "I/N"; all for None."""
    if part is None:
        return experts
    number, count = parse_part(part)
    if number > len(experts):
        raise UserError(
            f"Expected at most as many parts as experts, {len(experts)}, got part {part}. Fix: make fewer "
            "parts."
        )
    return experts[number - 1 :: count]


def parse_part(text: str) -> tuple[int, int]:
    """Reads I/N, part I of N.

    >>> parse_part("2/4")
    (2, 4)
    """
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UserError(f"Expected a part I/N such as 1/4, got {text!r}. Fix: correct --part.")
    return int(number), int(count)


def inherit_kind_options(config: TrainConfig, others: Iterable[ExpertSpec]) -> TrainConfig:
    """Returns the configuration with the options that all other experts of its kind share.

    Experts of one shape can be merged. Options that are given stay. Experts whose recipe names no options,
    such as converted ones, do not count.
    """
    kind = config.expert.kind
    recipes = [spec.recipe["options"] for spec in others if spec.kind == kind and "options" in spec.recipe]
    if not recipes:
        return config
    first, *rest = recipes
    shared = {
        name: value
        for name, value in first.items()
        if all(name in own and own[name] == value for own in rest)
    }
    return replace_fields(config, {"options": {**shared, **config.expert.options}})


def training_source(expert: ExpertTrainConfig, source: Source) -> Source:
    """Returns the source with the expert's limit of rows, if the source has none of its own."""
    return source if source.limit is not None else replace(source, limit=expert.max_rows)


def validation_source(spec: TaskSpec, source: Source, rows: int) -> Source:
    """Returns the source of the rows that a task's expert is validated on: of the evaluation split."""
    split = spec.evaluation_split
    if split is None or split == data_source.get_split(spec, source):
        raise UserError(
            f"Expected a split to validate {spec.id!r} on, got only the one it is trained on. "
            "Fix: set EVAL_PERIOD to 0."
        )
    return replace(source, splits={**source.splits, spec.dataset: split}, limit=rows)


def _resolve(
    identifier: str, specs: Sequence[TaskSpec], config: TrainConfig, lengths: Lengths | None
) -> ExpertTrainConfig:
    missing = _missing_macros(config, lengths)
    is_papers = specs[0].dataset in datasets.catalogue()  # the paper says nothing of any other task
    paper = _paper_budget(specs[0], config.paper, missing) if config.paper and missing and is_papers else None
    max_rows = paper.max_rows if paper else None
    if config.paper == "dataset" and max_rows is not None:
        max_rows = math.ceil(max_rows / len(specs))  # the table's is of the whole dataset
    if lengths is None:
        lengths = Lengths(paper.max_prompt, paper.max_answer) if paper else Lengths()
    schedule = config.schedule
    values: dict[str, Any] = {
        "batch_size": _first_given(config.batch.size, paper and paper.batch_size, BATCH_SIZE),
        "rate": _first_given(schedule.learning_rate, paper and paper.learning_rate, LEARNING_RATE),
    }
    if schedule.steps is None and schedule.epochs is None:
        values |= {"steps": STEPS} if paper is None else {"epochs": paper.epochs}
    return ExpertTrainConfig(identifier, tuple(specs), replace_fields(config, values), lengths, max_rows)


def _missing_macros(config: TrainConfig, lengths: Lengths | None) -> list[str]:
    """Returns what the paper's table has to say, by a recipe's macros."""
    given = {
        "TRAIN_STEPS or EPOCHS": _first_given(config.schedule.steps, config.schedule.epochs),
        "BATCH_SIZE": config.batch.size,
        "LEARNING_RATE": config.schedule.learning_rate,
        "TASK_FEATURE_LENGTHS": lengths,
    }
    return [macro for macro, value in given.items() if value is None]


def _paper_budget(spec: TaskSpec, table: str, missing: Sequence[str]) -> PaperBudget:
    """Returns a task's budget in one of the paper's tables; if it has none, names the macros to set."""
    try:
        if table == "prompt":
            return budgets.get_prompt_expert_budget(spec)
        if table == "target":
            return budgets.get_target_expert_budget(spec)
        if table == "dataset_adapter":
            return budgets.get_dataset_budget(spec.dataset)
        return budgets.get_full_finetuning_budget(spec.dataset)
    except UserError as error:
        raise UserError(f"{error} Fix: set {', '.join(missing)}, or PAPER=None.") from error


def _first_given(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
