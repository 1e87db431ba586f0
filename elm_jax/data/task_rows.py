"""Task rows: a task's prompted examples, and the same as token ids."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from elm_jax import storage
from elm_jax.data import identity, prepared
from elm_jax.data.data_source import Lengths, Source, split_of, switches
from elm_jax.data.prepared import Examples, Prepared
from elm_jax.data.task_selection import SEQIO, prepared_file
from elm_jax.errors import UserError
from elm_jax.records import PromptedExample, TaskSpec
from elm_jax.scoring.buckets import PromptWithChoices
from elm_jax.tasks import datasets, specs
from elm_jax.tokenizers.sentencepiece import Vocabulary


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


def rows(
    found: Sequence[PromptedExample], pieces: Vocabulary, lengths: Lengths, *, task: str
) -> list[PromptWithChoices]:
    """Returns the rows to rank; a row without choices, or whose answer is not one of them, is an error."""
    for example in found:
        if not example.choices or example.label is None:
            lack = "no answer choices" if not example.choices else "a target outside its choices"
            raise UserError(
                f"Rank classification of {task!r} wants answer choices with the right one among them, but "
                f"row {example.row_id!r} has {lack}. Evaluate another task; `elm tasks list` shows metrics."
            )
    made = prepare(found, pieces, lengths)
    return [PromptWithChoices(made.inputs[row], prepared.choices_of(made, row)) for row in range(len(found))]
