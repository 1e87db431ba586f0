"""Workloads: what a recipe asks for, counted without data and without the base's weights.

Rows come from the catalogue, which knows the size of every split; steps from the recipe and the paper's
budgets. How long rows are nobody knows before they are read: they are taken to fill a share of their feature
length, unless mean lengths are given. Rows that a template does not apply to are counted too.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gin

from elm_jax import storage
from elm_jax.engine.evaluate import BATCH_TOKENS
from elm_jax.errors import UserError
from elm_jax.models.sizes import SIZES, T5Config
from elm_jax.runs import courses, data, evaluate, methods, plan, recipes, train
from elm_jax.runs.courses import Budget
from elm_jax.tasks import datasets
from elm_jax.weights import known, load

PROMPT_FILLED = 0.6  # of a prompt's feature length that is real: 154 of 256 tokens. A guess
ANSWER_FILLED = 0.15  # of an answer's, which are words rather than texts: 19 of 128 tokens. A guess
SIZE = "xl"  # of the base, as the paper's, where a recipe names none
Means = tuple[
    float | None, float | None
]  # tokens of a prompt and of an answer; None is a share of the length


@dataclass(frozen=True)
class Expert:
    """One expert's training in numbers."""

    id: str
    rows: int
    steps: int
    batch_size: int  # rows a step
    longest_prompt: int  # tokens
    longest_answer: int
    prompt: float  # tokens, on average
    answer: float

    @property
    def tokens(self) -> float:
        """Real tokens of all of its steps."""
        return self.steps * self.batch_size * (self.prompt + self.answer)


@dataclass(frozen=True)
class Training:
    """What a recipe trains."""

    experts: tuple[Expert, ...]
    network: T5Config
    budget: Budget
    mesh: Mapping[str, int] | None  # as the recipe has it
    assumed: tuple[str, ...]  # what the recipe does not say


@dataclass(frozen=True)
class Evaluation:
    """What a recipe scores."""

    tasks: int
    rows: int  # of all tasks
    experts: int  # in the library
    scorers: int  # that work on every row: the base, an expert a method, and with an oracle every expert
    network: T5Config
    batch_tokens: int
    longest_prompt: int
    longest_answer: int
    prompt: float  # tokens of a row, on average
    answer: float  # of all distinct beginnings of a row's choices
    kind: str = "bottleneck"
    options: Mapping[str, Any] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()

    @property
    def passes(self) -> int:
        """How many prompts go through the encoder."""
        return self.rows * self.scorers


def read(
    recipe: str,
    bindings: Sequence[str] = (),
    *,
    size: str | None = None,
    dtype: str = "bfloat16",
    means: Means = (None, None),
    experts: int = 0,
    held: Mapping[str, Any] | None = None,
    lengths: data.Lengths | None = None,
) -> Training | Evaluation:
    """Returns what a recipe asks for, with bindings as the command line has them.

    `size` is the network's, else that of the recipe's INITIAL_CHECKPOINT_PATH, else `SIZE`. For an
    evaluation, whose run need not be there, `experts` is how many its library has, `held` their kind and
    options, and `lengths` those of the rows. Raises a UserError for a recipe that does neither.
    """
    recipes.load([recipe], bindings)
    if trained := _bound(train.train):
        return _training(trained, size, dtype, means)
    if evaluated := _bound(evaluate.evaluate):
        return _evaluation(evaluated, size, dtype, means, experts, held or {}, lengths or data.Lengths())
    raise UserError(
        f"A recipe of `elm train` or `elm evaluate` is wanted to predict, but {recipe!r} is of another verb. "
        "Plan the recipes of its parts, as gin/recipes/all_prompt_experts.gin."
    )


def _bound(function: Any) -> dict[str, Any]:
    """Returns what a recipe binds to a function's parameters, if it does."""
    try:
        return dict(gin.get_bindings(function, resolve_references=True))
    except ValueError:  # gin has not heard of it
        return {}


def _training(bound: Mapping[str, Any], size: str | None, dtype: str, means: Means) -> Training:
    network, assumed = _network(bound.get("initial_checkpoint"), size, dtype)
    source, budget = bound.get("source") or data.Source(), bound.get("budget") or Budget()
    tasks = bound["tasks"]
    specs = data.choose([tasks] if isinstance(tasks, str) else tasks, source)
    lengths = bound.get("lengths") or (None if budget.paper else data.Lengths())
    chosen = courses.courses(
        specs, budget, as_=bound.get("as_", "experts"), name=bound.get("name"), lengths=lengths
    )
    found = []
    for course in chosen:
        own = courses.source_of(course, source)
        rows = sum(_rows(spec, own) for spec in course.specs)
        prompt, answer = _means(course.lengths, means)
        longest = course.lengths.prompt, course.lengths.answer
        steps = course.steps_on(rows)
        found.append(Expert(course.id, rows, steps, course.batch_size, *longest, prompt, answer))
    return Training(tuple(found), network, budget, bound.get("mesh"), (*assumed, *_assumed(means)))


def _evaluation(
    bound: Mapping[str, Any],
    size: str | None,
    dtype: str,
    means: Means,
    experts: int,
    held: Mapping[str, Any],
    lengths: data.Lengths,
) -> Evaluation:
    network, assumed = _network(None, size, dtype)
    tasks = bound["tasks"]
    specs = data.choose([tasks] if isinstance(tasks, str) else tasks, evaluation=True)
    ways = bound.get("methods")
    wanted = methods.parse_all(ways) if ways else methods.default()
    oracle = bool(bound.get("oracle")) or any(each.router in methods.HINDSIGHT for each in wanted)
    if experts < 1:
        raise UserError("How many experts are evaluated is wanted: give --experts, as --experts 296.")
    # What a router chooses is scored already where every expert is; what is merged of several is not.
    others = [each for each in wanted if each.router not in ("base", *methods.HINDSIGHT)]
    own = [each for each in others if each.merge or each.router == "multitask" or each.level == "token"]
    scorers = 1 + (len(own) + experts if oracle else len(others))
    scorers *= 2 if bound.get("by") == "calibrated" else 1
    prompt, answer = _means(lengths, means)
    return Evaluation(
        tasks=len(specs),
        rows=sum(_rows(spec, data.Source()) for spec in specs),
        experts=experts,
        scorers=scorers,
        network=network,
        batch_tokens=bound.get("batch_tokens") or BATCH_TOKENS,
        longest_prompt=lengths.prompt,
        longest_answer=lengths.answer,
        prompt=prompt,
        answer=answer,
        assumed=(*assumed, *_assumed(means)),
        **held,
    )


def _rows(spec: Any, source: data.Source) -> int:
    """Returns how many rows of a task are read: those of its split, no more than the source takes."""
    split = data.split_of(spec, source)
    found = datasets.datasets().get(spec.dataset)
    count = found.splits.get(split) if found else None
    limit = source.limit
    if limit is None and found and found.training and split == found.split:
        limit = datasets.training(found, spec.prompt).rows  # as `tasks.specs.load_rows` takes them
    known = [each for each in (count, limit) if each is not None]
    if not known:
        raise UserError(
            f"Rows of {spec.id!r} are wanted to predict, but the catalogue does not know how many its "
            f"{split!r} split has. Give --gin.MAX_TRAIN_SAMPLES, or leave the task out."
        )
    return min(known)


def _network(base: Any, size: str | None, dtype: str) -> tuple[T5Config, tuple[str, ...]]:
    """Returns the network of a size, or of a base by directory or published name, and what that assumes."""
    if size is not None:
        return plan.network(size, dtype), ()
    if base is None:
        return plan.network(SIZE, dtype), (f"a base of size {SIZE}",)
    if (where := storage.path(base)).is_dir():
        # Its shape alone: the parameters stay unread.
        return load.READERS[load.format_of(where)](where, dtype=dtype).config, ()
    return plan.network(size_of(str(base)), dtype), ()


def size_of(name: str) -> str:
    """Returns the size that a published model has, by its name.

    >>> size_of("t5-xl-lm-adapt"), size_of("google/mt5-base"), size_of("T0_3B"), size_of("t5-3b")
    ('xl', 'mt5-base', 'xl', 't5-3b')
    """
    short = known.find(name).hub.rpartition("/")[2].lower()
    told = re.search(r"(small|base|large|xxl|xl|3b|11b)", short)
    letters = "".join(re.findall(r"^(?:m|by)?t[05]", short))
    if short.startswith("t0"):
        return "xl" if "3b" in short else "xxl"
    family = {"mt5": "mt5-", "mt0": "mt5-", "byt5": "byt5-"}.get(letters, "")
    if letters == "t5" and "v1_1" not in short and "lm-adapt" not in short:
        family = "t5-"
    found = f"{family}{told[1]}" if told else ""
    if found not in SIZES:
        raise UserError(
            f"The size of the base is wanted, but {name!r} does not tell it. Give it as --size, one of "
            f"{', '.join(SIZES)}."
        )
    return found


def _means(lengths: data.Lengths, means: Means) -> tuple[float, float]:
    """Returns the mean tokens of a prompt and of an answer, no more than their lengths."""
    prompt, answer = means
    return (
        min(float(lengths.prompt), PROMPT_FILLED * lengths.prompt if prompt is None else prompt),
        min(float(lengths.answer), ANSWER_FILLED * lengths.answer if answer is None else answer),
    )


def _assumed(means: Means) -> tuple[str, ...]:
    told = (("prompts", PROMPT_FILLED, means[0]), ("answers", ANSWER_FILLED, means[1]))
    return tuple(f"{what} of {share:.0%} of their length" for what, share, mean in told if mean is None)
