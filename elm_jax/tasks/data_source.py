"""Data source: where rows and templates come from, how many rows are taken, and how long texts may be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

from elm_jax import names, ranges, storage
from elm_jax.errors import UserError
from elm_jax.prompting.templates import MAX_VALUE_CHARACTERS
from elm_jax.records import OnBadRow, TaskSpec


@dataclass(frozen=True)
class Source:
    """Where rows and templates come from, and how many rows are taken.

    Attributes:
        data_dir: Directory of datasets.
        templates_dir: Directory of templates, laid out as PromptSource's; default: those that were fetched.
        splits: Dataset -> split; default: the catalogue's.
        seed: Seed of the choice of rows, and of the rows of the embedded suite.
        limit: Rows of a task that are used at most, in the order of a permutation drawn from the seed; None
            is as many as the paper takes of the split that experts are trained on, and all of any other.
        prepared: Directory of rows that `elm prepare` rendered and tokenised.
        tasks: Files that define tasks, or one of them.
        vocabulary: SentencePiece model or tokenizer.json; default: the one beside the base.
        truncate: Characters of a value that a template writes at most, as PromptSource's; None is no limit.
        faithful: Switches to the original's ways with data (`tasks.original`), or "all".
        input_eos: Whether inputs end with end-of-sequence; None is what the base's name says.
        on_bad_row: Whether a row that cannot be used is left out and counted, or refused.
    """

    data_dir: storage.PathLike | None = None
    templates_dir: storage.PathLike | None = None
    splits: Mapping[str, str] = field(default_factory=dict)
    seed: int = field(default=42, metadata=ranges.seed())
    limit: int | None = field(default=None, metadata=ranges.whole(1))
    prepared: storage.PathLike | None = None
    tasks: Sequence[storage.PathLike] = field(default_factory=list)
    vocabulary: storage.PathLike | None = None
    truncate: int | None = field(default=MAX_VALUE_CHARACTERS, metadata=ranges.whole(1))
    faithful: str | Sequence[str] = field(default_factory=list)
    input_eos: bool | None = None
    on_bad_row: OnBadRow = "leave-out"

    def __post_init__(self) -> None:
        if isinstance(self.tasks, str):  # one file, as a recipe's word names it
            object.__setattr__(self, "tasks", [self.tasks])
        ranges.check(self)
        names.resolve(self.on_bad_row, get_args(OnBadRow), kind="policy", where="ON_BAD_ROW")


@dataclass(frozen=True)
class Lengths:
    """How many tokens of an input and of a target are kept, end-of-sequence included.

    Attributes:
        prompt: Tokens of an input.
        answer: Tokens of a target, or of an answer choice.
    """

    prompt: int = field(default=256, metadata=ranges.whole(1))
    answer: int = field(default=128, metadata=ranges.whole(1))

    __post_init__ = ranges.check


def feature_lengths(features: Mapping[str, int] | None = None) -> Lengths | None:
    """Returns lengths given as T5X's TASK_FEATURE_LENGTHS; None if none are given.

    Args:
        features: Tokens of "inputs" and of "targets".

    Raises:
        UserError: If other features are named.
    """
    if features is None:
        return None
    if set(features) != {"inputs", "targets"}:
        raise UserError(
            "Expected TASK_FEATURE_LENGTHS as {'inputs': tokens, 'targets': tokens}, got "
            f"{', '.join(map(repr, features)) or 'no feature'}. Fix: name these two features."
        )
    return Lengths(features["inputs"], features["targets"])


def get_split(spec: TaskSpec, source: Source) -> str:
    """Returns the split of a task that a source names, or else the task's default."""
    return source.splits.get(spec.dataset, spec.split)


def override_rendering(
    source: Source,
    truncate: int | None,
    faithful: str | Sequence[str] | None,
    on_bad_row: OnBadRow | None = None,
) -> Source:
    """Returns a source with what is given: a limit of characters (0 is none), switches, a policy of rows."""
    source = source if truncate is None else replace(source, truncate=truncate or None)
    source = source if on_bad_row is None else replace(source, on_bad_row=on_bad_row)
    named = (faithful,) if isinstance(faithful, str) else faithful
    return source if named is None else replace(source, faithful=tuple(named))
