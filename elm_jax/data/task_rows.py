"""Task rows: a task's prompted examples, rendered or as they were prepared, and the same as token ids."""

from collections.abc import Sequence

from elm_jax.data import identity, prepared
from elm_jax.data.prepared import Examples, Prepared
from elm_jax.data.task_selection import SEQIO, prepared_file
from elm_jax.errors import UserError
from elm_jax.records import PromptedExample, TaskSpec
from elm_jax.scoring.buckets import Row
from elm_jax.tasks import original, rendering
from elm_jax.tasks.data_source import Lengths, Source, split_of
from elm_jax.tasks.task_templates import template_for
from elm_jax.tokenizers.sentencepiece import Vocabulary


def examples(spec: TaskSpec, source: Source) -> Sequence[PromptedExample]:
    """Returns a task's prompted examples, of the split that the source or the spec names.

    They are read from the source's prepared rows if these are there and current, and rendered otherwise: a
    verb calls this once for each task, and hands the examples on.

    Raises:
        UserError: If rows or a template are missing, or if no row renders.
    """
    if spec.group == SEQIO:
        return _read_seqio_rows(spec, source)
    if source.prepared is not None:
        file = prepared_file(source.prepared, spec, split_of(spec, source))
        stored = prepared.carried(file) if file.exists() else None
        if stored and stored.startswith(f"{rendering_key(spec, source)}-"):
            return Examples(prepared.load(file, stored), stored)
    return rendering.examples(spec, source=source).examples[: source.limit]


def rendering_key(spec: TaskSpec, source: Source) -> str:
    """Returns a fingerprint of a task's rendered rows; none of the rows is read for it."""
    template = template_for(spec, source.templates_dir)
    return prepared.rendering(
        identity.of_split(spec, source),
        {name: getattr(template, name) for name in ("id", "name", "jinja", "answer_choices")},
        seed=source.seed,
        truncate=source.truncate,
        faithful=original.row_switches(source.faithful),
    )


def tokenized_key(rendered: str, pieces: Vocabulary, lengths: Lengths) -> str:
    """Returns a fingerprint of a task's tokenised rows, given that of its rendered ones."""
    cut = {"max_input": lengths.prompt, "max_target": lengths.answer}
    return prepared.fingerprint(rendered, pieces, **cut, input_eos=pieces.input_eos)


def tokens(texts: Sequence[str], pieces: Vocabulary, length: int) -> list[list[int]]:
    """Returns the token ids of texts, each cut to `length` tokens of which the last is end-of-sequence."""
    return [[*ids[: length - 1], pieces.eos] for ids in pieces.encode_all(texts)]


def prepare(found: Sequence[PromptedExample], pieces: Vocabulary, lengths: Lengths) -> Prepared:
    """Returns a task's examples as token ids: as they were prepared, or tokenised now."""
    if isinstance(found, Examples):
        rendered = found.fingerprint.partition("-")[0]
        if found.fingerprint == tokenized_key(rendered, pieces, lengths):
            return found.prepared
    cut = {"max_input": lengths.prompt, "max_target": lengths.answer}
    return prepared.prepare(found, pieces, **cut, input_eos=pieces.input_eos)


def rows(found: Sequence[PromptedExample], pieces: Vocabulary, lengths: Lengths, *, task: str) -> list[Row]:
    """Returns the token ids of prompts and answer choices.

    Raises:
        UserError: If a row has no choices, or if its target is none of them.
    """
    for example in found:
        if not example.choices or example.label is None:
            lack = "no answer choices" if not example.choices else "a target outside its choices"
            raise UserError(
                f"Expected answer choices with the target among them in every row of {task!r}, got row "
                f"{example.row_id!r} with {lack}. Fix: evaluate another task; `elm tasks list` shows metrics."
            )
    made = prepare(found, pieces, lengths)
    return [Row(made.inputs[row], prepared.choices_of(made, row)) for row in range(len(found))]


def _read_seqio_rows(spec: TaskSpec, source: Source) -> Examples:
    """Returns rows that were prepared through SeqIO: only the module of the task can make them."""
    split = split_of(spec, source)
    file = None if source.prepared is None else prepared_file(source.prepared, spec, split)
    if file is None or not file.exists():
        raise UserError(
            f"Expected prepared rows of SeqIO's task {spec.dataset!r}, {split} split, got none. Fix: run "
            f"`elm prepare {spec.dataset} --module MODULE --split {split}`."
        )
    return Examples(prepared.load(file), prepared.carried(file) or "")
