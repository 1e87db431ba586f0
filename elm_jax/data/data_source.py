"""Data source: where rows and templates come from, how much of them is taken, how long texts may be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from elm_jax import names, storage
from elm_jax.errors import UserError
from elm_jax.prompting.templates import TRUNCATE
from elm_jax.records import TaskSpec
from elm_jax.tasks import specs


@dataclass(frozen=True)
class Source:
    """Where rows and templates come from, and how much of them is taken."""

    data_dir: storage.PathLike | None = None
    templates_dir: storage.PathLike | None = None
    splits: Mapping[str, str] = field(default_factory=dict)  # dataset -> split, where not the catalogue's
    seed: int = 42
    limit: int | None = None  # rows a task at most, of a permutation drawn from the seed
    prepared: storage.PathLike | None = None  # where `elm prepare` put rows, which are not rendered again
    tasks: Sequence[storage.PathLike] = field(default_factory=list)  # files that define one's own tasks
    vocabulary: storage.PathLike | None = None  # SentencePiece model, where none lies with the base
    truncate: int | None = TRUNCATE  # characters of a value that a template writes; None is no limit
    # The original's ways, `specs.SWITCHES` or "all", one or several.
    faithful: str | Sequence[str] = field(default_factory=list)
    input_eos: bool | None = None  # whether prompts end with it; None: as the base's name says


@dataclass(frozen=True)
class Lengths:
    """How many tokens of a prompt and of an answer are kept, end-of-sequence included."""

    prompt: int = 256
    answer: int = 128


def feature_lengths(features: Mapping[str, int] | None = None) -> Lengths | None:
    """Returns lengths that come as T5X's TASK_FEATURE_LENGTHS, of "inputs" and "targets"."""
    if features is None:
        return None
    if set(features) != {"inputs", "targets"}:
        raise UserError(
            "TASK_FEATURE_LENGTHS should be {'inputs': tokens, 'targets': tokens}, but came with "
            f"{', '.join(map(repr, features)) or 'nothing'}."
        )
    return Lengths(features["inputs"], features["targets"])


def split_of(spec: TaskSpec, source: Source) -> str:
    """Returns the split of a task that a source says, or else the catalogue."""
    return source.splits.get(spec.dataset, spec.split)


def rendered_as(source: Source, truncate: int | None, faithful: str | Sequence[str] | None) -> Source:
    """Returns a source whose rows render otherwise where that is given; a `truncate` of 0 is no limit."""
    source = source if truncate is None else replace(source, truncate=truncate or None)
    named = (faithful,) if isinstance(faithful, str) else faithful
    return source if named is None else replace(source, faithful=tuple(named))


def switches(source: Source) -> tuple[str, ...]:
    """Returns the original's ways with data that a source asks for, in `specs.FAITHFUL`'s order."""
    return tuple(switch for switch in specs.FAITHFUL if is_faithful(source, switch))


def is_faithful(source: Source, switch: str) -> bool:
    """Says whether a source asks for one of the original's ways, by name or with all of them."""
    asked = (source.faithful,) if isinstance(source.faithful, str) else source.faithful
    for name in asked:
        names.resolve(name, (*specs.SWITCHES, "all"), kind="switch", where="elm_jax.tasks.specs")
    return switch in asked or "all" in asked


def truncation(spec: TaskSpec, source: Source) -> int | None:
    """Returns how many characters of a value a task's template may write; None where there is no limit."""
    return source.truncate if specs.is_truncated(spec) else None
