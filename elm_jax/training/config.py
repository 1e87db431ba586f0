"""Courses: what each expert is trained on, how long and how fast; a budget in which nothing is open any more.

What a budget leaves open is the paper's, of the table that it names, or else a default.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.records import ExpertSpec, TaskSpec
from elm_jax.tasks import budgets, data_source
from elm_jax.tasks.data_source import Lengths, Source

STEPS, BATCH_SIZE, RATE = 1000, 8, 1e-4
PAPERS = ("prompt", "dataset_adapter", "dataset", "target")
KINDS = ("experts", "dataset", "multitask")
MULTITASK = "multitask"  # the dataset that experts on several datasets go by
ALL = "all"  # the prompt that an expert on all of a dataset's goes by


@dataclass(frozen=True)
class Budget:
    """What experts are trained, how long and how fast.

    `steps` and `epochs` exclude each other; `batch_size` is rows in a step, `rate` the highest learning rate,
    reached after `warmup` steps; by `schedule` it falls to 0 ("linear") or stays ("constant"). What is None
    of these is the paper's where `paper` names one of its tables (`PAPERS`: "prompt", "dataset_adapter",
    "dataset", "target"), else 1,000 steps of 8 rows at 1e-4. `dropout` is a probability.

    `optimizer` is "adamw" or "adafactor"; `clip` the largest norm of an expert's gradient, None the
    optimiser's own way. `z_loss` and `label_smoothing` are factors in the loss. `kind` is what an expert
    owns, "bottleneck", "lora", "ia3" or "full", and `options` are the kind's own, as {"rank": 8}; what these
    leave open is what all experts of that kind in the library have in common, else the kind's default.

    `places` is how many experts train at once and `batch_tokens` how many tokens a batch has; None is what
    memory holds. Checkpoints are written every `save_every` batches, None an eighth of an expert's steps, at
    least 25. Experts are judged every `validate_every` of their own steps, 0 never, on at most
    `validate_rows` rows of a task; `keep` is the step that is kept, "last" or "best".
    """

    steps: int | None = None
    epochs: int | float | None = None
    batch_size: int | None = None
    rate: float | None = None
    warmup: int = 0
    schedule: str = "linear"
    optimizer: str = "adamw"
    clip: float | None = None
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    kind: str = "bottleneck"
    options: Mapping[str, Any] = field(default_factory=dict)
    dropout: float = 0.1
    paper: str | None = None
    places: int | None = None
    batch_tokens: int | None = None
    save_every: int | None = None
    validate_every: int = 0
    validate_rows: int = 300  # the paper's
    keep: str = "last"


@dataclass(frozen=True)
class Course:
    """One expert's training, all but its rows."""

    id: str
    specs: tuple[TaskSpec, ...]
    batch_size: int
    rate: float
    lengths: Lengths
    cap: int | None  # rows of each task
    steps: int | None  # or else
    epochs: int | float

    def steps_on(self, rows: int) -> int:
        """Returns how many steps it takes on so many rows; the last of an epoch has what is left of them."""
        if self.steps is not None:
            return self.steps
        return math.ceil(self.epochs * math.ceil(rows / self.batch_size))


def courses(
    specs: Sequence[TaskSpec],
    budget: Budget,
    *,
    as_: str = "experts",
    name: str | None = None,
    lengths: Lengths | None = None,
) -> list[Course]:
    """Returns a course for every task, for every dataset (`as_` "dataset") or for all ("multitask").

    `lengths` hold for all where they are given. Raises a UserError for names that do not exist, steps given
    beside epochs, and a multitask expert without a name.
    """
    names.resolve(as_, KINDS, kind="way to train", where="TRAIN_AS")
    if budget.paper is not None:
        names.resolve(budget.paper, PAPERS, kind="table of budgets", where="PAPER")
    if budget.keep not in ("last", "best"):
        raise UserError(f"KEEP should be 'last' or 'best', but {budget.keep!r} came.")
    if budget.keep == "best" and not budget.validate_every:
        raise UserError("The best step is known where steps are validated: give EVAL_PERIOD, or KEEP='last'.")
    if budget.steps is not None and budget.epochs is not None:
        raise UserError(
            f"Steps or epochs are wanted, but TRAIN_STEPS={budget.steps} and EPOCHS={budget.epochs} came."
        )
    if as_ == "multitask":
        if not name:
            raise UserError("A name for the expert on all tasks is wanted: give EXPERT_NAME, or --multitask.")
        return [_course(names.task_id(MULTITASK, name), specs, budget, lengths)]
    if as_ == "dataset":
        grouped: dict[str, list[TaskSpec]] = {}
        for spec in specs:
            grouped.setdefault(spec.dataset, []).append(spec)
        return [_course(names.task_id(each, ALL), own, budget, lengths) for each, own in grouped.items()]
    return [_course(spec.id, [spec], budget, lengths) for spec in specs]


def like_others(budget: Budget, others: Iterable[ExpertSpec]) -> Budget:
    """Returns the budget with the options that it leaves open as other experts of its kind all have them.

    Experts of one shape can be merged. Those whose recipe names no options, as of one made elsewhere, say
    nothing.
    """
    told = [
        spec.recipe["options"] for spec in others if spec.kind == budget.kind and "options" in spec.recipe
    ]
    if not told:
        return budget
    first, *rest = told
    shared = {
        name: value
        for name, value in first.items()
        if all(name in own and own[name] == value for own in rest)
    }
    return replace(budget, options={**shared, **budget.options})


def source_of(course: Course, source: Source) -> Source:
    """Returns the source with no more rows of a task than the course takes, unless it says how many."""
    return source if source.limit is not None else replace(source, limit=course.cap)


def held_out(spec: TaskSpec, source: Source, rows: int) -> Source:
    """Returns the source of the rows that a task's expert is judged on: of the split for evaluation."""
    split = spec.evaluation_split
    if split is None or split == data_source.split_of(spec, source):
        raise UserError(
            f"A split to validate {spec.id!r} on is wanted, but the catalogue has none beside the one it is "
            "trained on. Set EVAL_PERIOD to 0."
        )
    return replace(source, splits={**source.splits, spec.dataset: split}, limit=rows)


def _course(identifier: str, specs: Sequence[TaskSpec], budget: Budget, lengths: Lengths | None) -> Course:
    left = _open(budget, lengths)
    paper = _papers(specs[0], budget.paper, left) if budget.paper and left else None
    cap = paper.cap if paper else None
    if budget.paper == "dataset" and cap is not None:
        cap = math.ceil(cap / len(specs))  # of the whole dataset
    if lengths is None:
        lengths = Lengths(paper.max_prompt, paper.max_answer) if paper else Lengths()
    steps = budget.steps
    if steps is None and budget.epochs is None and paper is None:
        steps = STEPS
    return Course(
        id=identifier,
        specs=tuple(specs),
        batch_size=_given(budget.batch_size, paper and paper.batch_size, BATCH_SIZE),
        rate=_given(budget.rate, paper and paper.rate, RATE),
        lengths=lengths,
        cap=cap,
        steps=steps,
        epochs=_given(budget.epochs, paper and paper.epochs, 0),
    )


def _open(budget: Budget, lengths: Lengths | None) -> list[str]:
    """Returns what is left for the paper's table to say, by a recipe's macros."""
    said = {
        "TRAIN_STEPS or EPOCHS": _given(budget.steps, budget.epochs),
        "BATCH_SIZE": budget.batch_size,
        "LEARNING_RATE": budget.rate,
        "TASK_FEATURE_LENGTHS": lengths,
    }
    return [macro for macro, value in said.items() if value is None]


def _papers(spec: TaskSpec, table: str, left: Sequence[str]) -> budgets.Budget:
    """Returns a task's budget in one of the paper's tables; where it has none, says what to give instead."""
    try:
        if table == "prompt":
            return budgets.of_prompt(spec)
        if table == "target":
            return budgets.of_target(spec)
        if table == "dataset_adapter":
            return budgets.of_dataset(spec.dataset)
        return budgets.of_full_dataset(spec.dataset)
    except UserError as error:
        raise UserError(
            f"{error} PAPER={table!r} is asked for {', '.join(left)}: give that yourself, or set PAPER=None."
        ) from error


def _given(*values: Any) -> Any:
    """Returns the first value that is one."""
    return next((value for value in values if value is not None), None)
