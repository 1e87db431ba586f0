"""Data of a run: which tasks it means, their prompted examples, and the same as token ids."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from etils import epath

from elm_jax import names, storage
from elm_jax.errors import UserError
from elm_jax.prompting.templates import TRUNCATE
from elm_jax.records import PromptedExample, TaskSpec
from elm_jax.scoring.buckets import Row
from elm_jax.tasks import datasets, identity, own, prepared, specs
from elm_jax.tasks.prepared import Examples, Prepared
from elm_jax.tasks.vocabulary import Vocabulary

Tasks = str | TaskSpec | Iterable[str | TaskSpec]
"""Tasks that a verb works on: specs, or names as `choose` takes them; one or several."""
SEQIO = "seqio"
"""The prompt and group of tasks that were registered with SeqIO by hand, which have none."""


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


def choose(wanted: Tasks, source: Source | None = None, *, evaluation: bool = False) -> list[TaskSpec]:
    """Returns the tasks that names stand for: a task's id, a dataset (all its prompts) or a group.

    A source's own tasks are known too, and those of SeqIO that it has prepared rows of. A name may also be a
    file that defines tasks: all of these. A spec stands for itself. For `evaluation` a task's split is the
    one that evaluation reads.
    """
    source = source or Source()
    for file in source.tasks:
        own.load(file)
    chosen: dict[str, TaskSpec] = {}
    for each in [wanted] if isinstance(wanted, str | TaskSpec) else wanted:
        if isinstance(each, TaskSpec):
            found = [each]
        else:
            found = own.load(each) if is_task_file(each) else _named(each, source)
        chosen |= {spec.id: spec for spec in found}
    if not chosen:
        raise UserError("At least one task is wanted, but none was named. `elm tasks list` shows them all.")
    if evaluation:
        return [replace(spec, split=spec.evaluation_split or spec.split) for spec in chosen.values()]
    return list(chosen.values())


def find(task: str, source: Source) -> TaskSpec:
    """Returns the task of that id, be it the catalogue's, one's own or SeqIO's."""
    return seqio_prepared(task, source) or specs.find_task(task)


def choices_expression(spec: TaskSpec, source: Source) -> str | None:
    """Returns the jinja that a task's answer choices come from; None where there is none, or no template."""
    if spec.group == SEQIO:
        return None
    return specs.template_for(spec, source.templates_dir).answer_choices


def seqio_task(name: str, split: str = "train") -> TaskSpec:
    """Returns what stands for a task that was registered with SeqIO by hand."""
    return TaskSpec(id=names.task_id(name, SEQIO), dataset=name, prompt=SEQIO, group=SEQIO, split=split)


def seqio_prepared(name: str, source: Source) -> TaskSpec | None:
    """Returns a task of SeqIO's, by its name or id, if the source has prepared rows of it."""
    task, _, prompt = name.partition("/")
    if prompt not in ("", SEQIO) or source.prepared is None:
        return None
    spec = seqio_task(task)
    there = sorted(prepared_file(source.prepared, spec, "x").parent.glob("*.safetensors"))
    splits = [names.from_directory_name(file.name.removesuffix(".safetensors")) for file in there]
    if not splits:
        return None
    return spec if spec.split in splits else seqio_task(task, splits[0])


def examples(spec: TaskSpec, source: Source) -> Sequence[PromptedExample]:
    """Returns a task's prompted examples, of the split that the source or the catalogue says.

    They are read from the source's prepared rows where these are there and current, and rendered otherwise.
    """
    return _found(
        spec,
        split_of(spec, source),
        source.data_dir,
        source.templates_dir,
        source.seed,
        source.limit,
        source.prepared,
        source.truncate,
        switches(source),
        repr(datasets.added().get(spec.dataset)),
    )


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


def load_rows(spec: TaskSpec, source: Source) -> list[dict[str, Any]]:
    """Returns the rows of a task's dataset that a source says, before any template is applied."""
    return specs.load_rows(
        spec,
        split_of(spec, source),
        source.data_dir,
        seed=source.seed,
        rows=source.limit,
        faithful=switches(source),
    )


def truncation(spec: TaskSpec, source: Source) -> int | None:
    """Returns how many characters of a value a task's template may write; None where there is no limit."""
    return source.truncate if specs.is_truncated(spec) else None


def prepared_file(directory: storage.PathLike, spec: TaskSpec, split: str) -> epath.Path:
    """Returns where a task's prepared rows of one split lie."""
    folder = storage.path(directory) / names.directory_name(spec.dataset) / names.directory_name(spec.prompt)
    return folder / f"{names.directory_name(split)}.safetensors"


def rendering(spec: TaskSpec, source: Source) -> str:
    """Returns what stands for a task's rendered rows; little is read for it, and none of the rows."""
    split = split_of(spec, source)
    template = specs.template_for(spec, source.templates_dir)
    return prepared.rendering(
        identity.of_split(spec, split, source.data_dir, rows=source.limit),
        {name: getattr(template, name) for name in ("id", "name", "jinja", "answer_choices")},
        seed=source.seed,
        truncate=source.truncate,
        faithful=switches(source),
    )


def fingerprint(rendered: str, pieces: Vocabulary, lengths: Lengths) -> str:
    """Returns what stands for a task's prepared rows, by what stands for its rendered ones."""
    cut = {"max_input": lengths.prompt, "max_target": lengths.answer}
    return prepared.fingerprint(rendered, pieces, **cut, input_eos=pieces.input_eos)


# A run asks for the same task when it trains, indexes, routes and scores; the small ones are rendered once.
@lru_cache(maxsize=64)
def _found(
    spec: TaskSpec,
    split: str,
    data_dir: storage.PathLike | None,
    templates_dir: storage.PathLike | None,
    seed: int,
    limit: int | None,
    directory: storage.PathLike | None,
    truncate: int | None,
    faithful: tuple[str, ...],
    defined: str,  # how one's own dataset is, which may be defined anew
) -> Sequence[PromptedExample]:
    if spec.group == SEQIO:
        return _of_seqio(spec, split, directory)
    if directory is not None:
        file = prepared_file(directory, spec, split)
        carried = prepared.carried(file) if file.exists() else None
        source = Source(
            data_dir, templates_dir, {spec.dataset: split}, seed, limit, truncate=truncate, faithful=faithful
        )
        if carried and carried.startswith(f"{rendering(spec, source)}-"):
            return Examples(prepared.load(file, carried), carried)
    found = specs.examples(
        spec,
        split,
        data_dir=data_dir,
        templates_dir=templates_dir,
        seed=seed,
        rows=limit,
        truncate=truncate,
        faithful=faithful,
    )
    return found.examples[:limit]


def _of_seqio(spec: TaskSpec, split: str, directory: storage.PathLike | None) -> Examples:
    """Returns what was prepared through SeqIO; nothing else can make it but the module that registers it."""
    file = None if directory is None else prepared_file(directory, spec, split)
    if file is None or not file.exists():
        raise UserError(
            f"Prepared rows of SeqIO's task {spec.dataset!r} are wanted, of its {split} split, but none are "
            f"there. Run `elm prepare {spec.dataset} --module MODULE --split {split}`."
        )
    return Examples(prepared.load(file), prepared.carried(file) or "")


def is_task_file(name: str) -> bool:
    """Says whether a name is that of a file which defines tasks."""
    return name.endswith((".yaml", ".yml", ".py"))


def _named(name: str, source: Source) -> list[TaskSpec]:
    known = specs.task_specs()
    found = _meant(name, known)
    if not found:
        with contextlib.suppress(UserError):  # the error below knows more names
            found = _meant(specs.resolve_original(name), known)
    prepared_with_seqio = None if found else seqio_prepared(name, source)
    if prepared_with_seqio:
        return [prepared_with_seqio]
    if not found:
        every = {label for spec in known for label in (spec.id, spec.dataset, spec.group)}
        names.resolve(name, every, kind="task, dataset or group", where="the catalogue")
    return found


def _meant(name: str, known: Sequence[TaskSpec]) -> list[TaskSpec]:
    return [spec for spec in known if name in (spec.id, spec.dataset, spec.group, specs.group_of(spec))]


def tokens(texts: Sequence[str], pieces: Vocabulary, length: int) -> list[list[int]]:
    """Tokenises texts, each cut to `length` and ending with end-of-sequence."""
    return [[*ids[: length - 1], pieces.eos] for ids in pieces.encode_all(texts)]


def prepare(found: Sequence[PromptedExample], pieces: Vocabulary, lengths: Lengths) -> Prepared:
    """Tokenises a task's examples, unless they were read from rows that were prepared just so."""
    if isinstance(found, Examples):
        rendered = found.fingerprint.partition("-")[0]
        if found.fingerprint == fingerprint(rendered, pieces, lengths):
            return found.prepared
    cut = {"max_input": lengths.prompt, "max_target": lengths.answer}
    return prepared.prepare(found, pieces, **cut, input_eos=pieces.input_eos)


def rows(found: Sequence[PromptedExample], pieces: Vocabulary, lengths: Lengths, *, task: str) -> list[Row]:
    """Returns the rows to rank; a row without choices, or whose answer is not one of them, is an error."""
    for example in found:
        if not example.choices or example.label is None:
            lack = "no answer choices" if not example.choices else "a target outside its choices"
            raise UserError(
                f"Rank classification of {task!r} wants answer choices with the right one among them, but "
                f"row {example.row_id!r} has {lack}. Evaluate another task; `elm tasks list` shows metrics."
            )
    made = prepare(found, pieces, lengths)
    return [Row(made.inputs[row], prepared.choices_of(made, row)) for row in range(len(found))]
