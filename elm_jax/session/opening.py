"""Opening: a run's base, tokenizer and settings, read from its directory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.session import settings
from elm_jax.session.workspace import Run, Workspace
from elm_jax.tasks import own
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.telemetry.progress import Stages
from elm_jax.tokenizers import huggingface, sentencepiece
from elm_jax.tokenizers.sentencepiece import Vocabulary
from elm_jax.weights import base as weights_base
from elm_jax.weights import load as weights
from elm_jax.weights.elm import Base

VOCABULARY = "vocabulary.model"


PUBLISHED = "spiece.model"  # what T5's SentencePiece model is called on the hub


SENTINELS = 16  # spans of one text at most


@dataclass(frozen=True)
class Reading:
    """How rows are read and tokenised: what of a run does not need its base."""

    pieces: Vocabulary
    source: Source
    lengths: Lengths


def load(
    where: storage.PathLike,
    vocabulary_file: storage.PathLike | None = None,
    dtype: str | None = None,
) -> tuple[Base, Vocabulary]:
    """Returns a base, of any format or by name as `load_model` takes them, and its vocabulary.

    Args:
        where: The base.
        vocabulary_file: Its vocabulary, where that is not beside it.
        dtype: What the base is held and computes in; as stored by default. Its fingerprint stays that of
            the stored parameters, so that experts fit it in either type.

    Raises:
        UserError: If either is missing, or the vocabulary gives ids that the base has no embedding for.
    """
    directory = weights.find(where)
    base = weights.read(directory, dtype=dtype, as_stored=True)
    pieces = pieces_of(directory, vocabulary_file)
    if pieces.size > base.config.vocab_size:
        raise UserError(
            f"Expected a tokenizer of at most {base.config.vocab_size} ids, as many as the base at "
            f"{str(directory)!r} has embeddings, got one of {pieces.size}. Fix: use the base's own tokenizer."
        )
    return base, pieces


def pieces_of(directory: storage.PathLike, vocabulary_file: storage.PathLike | None = None) -> Vocabulary:
    """Returns the vocabulary of a base: the one given, or what lies with it, ours or the hub's.

    Args:
        directory: The base's.
        vocabulary_file: A SentencePiece model, read as T5X reads it; or a `tokenizer.json`, or the directory
            of a tokenizer, read as transformers reads it.

    Raises:
        UserError: If there is none.
    """
    home = storage.path(directory)
    if vocabulary_file is not None:
        return named_vocabulary(vocabulary_file)
    if (home / VOCABULARY).exists():
        return sentencepiece.load(home / VOCABULARY, extra_ids=SENTINELS)
    if huggingface.is_there(home):
        return huggingface.load(home)
    raise UserError(
        f"Expected a tokenizer beside the base at {str(directory)!r}, as {VOCABULARY}, {huggingface.JSON} "
        f"or {PUBLISHED}, got none. Fix: name a SentencePiece model, or a {huggingface.JSON}, as VOCABULARY "
        f"of the recipe; for ByT5, put a {huggingface.CONFIG} there whose tokenizer_class is "
        f"{huggingface.BYTES}."
    )


def named_vocabulary(file: storage.PathLike, extra_ids: int | None = None) -> Vocabulary:
    """Returns a vocabulary that was named: a SentencePiece model, a `tokenizer.json` or its directory.

    `extra_ids` is how many sentinels a SentencePiece model has on top; as T5's or mT5's have it by default.
    """
    where = storage.path(file)
    if where.suffix == ".json" or where.is_dir():
        return huggingface.load(where)
    return (
        sentencepiece.load_with_sentinels(file) if extra_ids is None else sentencepiece.load(file, extra_ids)
    )


def open_run(
    run: storage.PathLike,
    *,
    initial_checkpoint: storage.PathLike | None = None,
    data_dir: storage.PathLike | None = None,
    templates_dir: storage.PathLike | None = None,
    task_files: Sequence[storage.PathLike] = (),
    prepared: storage.PathLike | None = None,
    limit: int | None = None,
    source: Source | None = None,
    lengths: Lengths | None = None,
    stages: Stages | None = None,
    dtype: str | None = None,
) -> Run:
    """Opens a run's directory for the other verbs: reads its base and vocabulary, and how it reads rows.

    `initial_checkpoint` is a base, a directory or a name as `load_model` takes them. It makes the directory
    `run` where there is none, and the run remembers it; without it the base is the one that is remembered, or
    the run's own.

    Rows come from `data_dir`, PromptSource's templates from `templates_dir`, one's own tasks from
    `task_files`, which the run remembers, rows that `elm prepare` made from `prepared`. `limit` is how many
    rows of a task are taken at most. `source` says all this at once and more, `lengths` how many tokens of a
    prompt and of an answer are kept; what is not given is as it was when the run was last written. `stages`
    show progress. `dtype`, float32 or bfloat16, is what the base is held and computes in; it is remembered
    with `initial_checkpoint`, and as stored by default.

    Raises a UserError where the directory, the base or its vocabulary is not there, or a file of tasks does
    not read.
    """
    for file in task_files:
        own.load(file)
    places = {"data_dir": data_dir, "templates_dir": templates_dir, "prepared": prepared}
    given: dict[str, Any] = {name: place for name, place in places.items() if place is not None}
    if initial_checkpoint is not None:
        # How many rows are taken is not remembered: an evaluation of what was trained on a few takes all.
        kept = replace(source or Source(), **given, limit=None)
        settings.remember(Workspace.open(run, create=True), initial_checkpoint, kept, lengths, dtype)
    workspace = Workspace.open(run)
    note = settings.remembered(workspace)
    source = replace(source or Source(**note["source"]), **given)
    source = replace(source, tasks=[*source.tasks, *task_files])
    if limit is not None:
        source = replace(source, limit=limit)
    if source.input_eos is None:
        source = replace(source, input_eos=note["source"].get("input_eos"))
    place = note["base"] or workspace.base
    dtype = weights_base.dtype_name(dtype or note.get("dtype"))
    if dtype is not None and dtype == weights.stored_dtype(place):
        dtype = None  # the same, and so are the stamps of what is scored
    base, pieces = load(place, source.vocabulary, dtype)
    for file in source.tasks:
        own.load(file)
    settings.remember_tasks(workspace, source.tasks)
    if source.prepared is None:
        source = replace(source, prepared=workspace.prepared)
    pieces = replace(pieces, input_eos=source.input_eos is not False)
    lengths = lengths or Lengths(**note["lengths"])
    return Run(workspace, base, pieces, source, lengths, stages or Stages(), dtype)


def opened(run: Run | storage.PathLike) -> Run:
    """Returns the run that a verb was given, be it open already or a directory."""
    return run if isinstance(run, Run) else open_run(run)


def reading(
    out: storage.PathLike,
    *,
    vocabulary_file: storage.PathLike | None = None,
    extra_ids: int = sentencepiece.EXTRA_IDS,
) -> Reading:
    """Returns how a workspace reads rows, without its base being read.

    With a vocabulary of one's own the workspace need not be there; prepared rows then go to where it will be.
    """
    workspace = Workspace.at(out) if vocabulary_file else Workspace.open(out)
    note = settings.remembered(workspace)
    source = Source(**note["source"])
    if vocabulary_file:
        pieces = named_vocabulary(vocabulary_file, extra_ids)
    else:
        pieces = pieces_of(note["base"] or workspace.base, source.vocabulary)
    for file in source.tasks:
        own.load(file)
    if source.prepared is None:
        source = replace(source, prepared=workspace.prepared)
    pieces = replace(pieces, input_eos=source.input_eos is not False)
    return Reading(pieces, source, Lengths(**note["lengths"]))
