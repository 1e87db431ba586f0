"""The base of a run: a T5 read from disk, or a tiny one trained from scratch on plain text.

A base trained here learns to denoise: half of its pairs have spans corrupted, as T5's pretraining, half are
cut into a beginning and a rest, as its language-model adaptation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from elm_jax import storage
from elm_jax.engine import train
from elm_jax.engine.jobs import Job
from elm_jax.engine.programs import Plan
from elm_jax.errors import UserError
from elm_jax.models.sizes import size
from elm_jax.models.t5 import init_params
from elm_jax.runs import settings, watching
from elm_jax.runs.data import Lengths, Source
from elm_jax.runs.progress import Stages
from elm_jax.runs.workspace import Run, Workspace
from elm_jax.tasks import hf_tokenizer, own, vocabulary
from elm_jax.tasks.vocabulary import Vocabulary
from elm_jax.training import denoise
from elm_jax.weights import base as weights_base
from elm_jax.weights import elm
from elm_jax.weights import load as weights
from elm_jax.weights.elm import Base

STAGE = "train the base"
VOCABULARY = "vocabulary.model"
PUBLISHED = "spiece.model"  # what T5's SentencePiece model is called on the hub
SENTINELS = 16  # spans of one text at most
BATCH_TOKENS = 32768


@dataclass(frozen=True)
class Pretraining:
    """How a base is trained from scratch."""

    size: str = "tiny"
    vocabulary_size: int = 1000
    vocabulary_kind: str = "unigram"
    steps: int = 400
    batch_size: int = 128
    rate: float = 3e-3
    warmup: int = 20
    max_tokens: int = 64  # of one text
    span_share: float = 0.3
    span_length: float = 1.5


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
        return vocabulary.load(home / VOCABULARY, extra_ids=SENTINELS)
    if hf_tokenizer.is_there(home):
        return hf_tokenizer.load(home)
    raise UserError(
        f"Expected a tokenizer beside the base at {str(directory)!r}, as {VOCABULARY}, {hf_tokenizer.JSON} "
        f"or {PUBLISHED}, got none. Fix: name a SentencePiece model, or a {hf_tokenizer.JSON}, as VOCABULARY "
        f"of the recipe; for ByT5, put a {hf_tokenizer.CONFIG} there whose tokenizer_class is "
        f"{hf_tokenizer.BYTES}."
    )


def named_vocabulary(file: storage.PathLike, extra_ids: int | None = None) -> Vocabulary:
    """Returns a vocabulary that was named: a SentencePiece model, a `tokenizer.json` or its directory.

    `extra_ids` is how many sentinels a SentencePiece model has on top; as T5's or mT5's have it by default.
    """
    where = storage.path(file)
    if where.suffix == ".json" or where.is_dir():
        return hf_tokenizer.load(where)
    return vocabulary.load_with_sentinels(file) if extra_ids is None else vocabulary.load(file, extra_ids)


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
    extra_ids: int = vocabulary.EXTRA_IDS,
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


def pretrain(
    workspace: Workspace,
    texts: Sequence[str],
    words: Sequence[str],
    how: Pretraining,
    *,
    seed: int,
    stages: Stages,
) -> tuple[Base, Vocabulary]:
    """Trains a base on `texts` unless the workspace has one; `words` are further texts for the vocabulary."""
    if (workspace.base / elm.CONFIG).exists():
        return load(workspace.base)
    storage.writable_directory(workspace.base)
    pieces = vocabulary.train(
        [*texts, *words],
        workspace.base / VOCABULARY,
        how.vocabulary_size,
        kind=how.vocabulary_kind,
        extra_ids=SENTINELS,
    )
    config = size(how.size, vocab_size=-(-pieces.size // 64) * 64)
    prompts, targets = pairs(
        [ids[: how.max_tokens] for ids in pieces.encode_all(texts)], pieces, how, seed=seed
    )
    plan = Plan(kind="full", batch_tokens=BATCH_TOKENS, save_every=max(50, how.steps // 8))
    job = Job(
        "base", prompts, targets, how.steps, how.rate, seed, batch_size=how.batch_size, warmup=how.warmup
    )
    fresh = init_params(jax.random.key(seed), config)
    with watching.training(stages, STAGE) as watch:
        (params,) = train.train_group(
            config,
            fresh,
            [job],
            plan,
            checkpoint_dir=workspace.checkpoints / "base",
            watch=watch,
        )
    elm.save(workspace.base, elm.of(config, params))
    return load(workspace.base)


def pairs(
    tokens: Sequence[Sequence[int]], pieces: Vocabulary, how: Pretraining, *, seed: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Returns the prompts and targets of all steps, drawn evenly from the texts."""
    rng = np.random.default_rng(seed)
    long_enough = [text for text in tokens if len(text) > 1]
    chosen = rng.integers(0, len(long_enough), how.steps * how.batch_size)
    made = []
    for number, text in enumerate(chosen):
        ids = long_enough[text]
        if number % 2:
            made.append(denoise.cut_prefix(ids, eos=pieces.eos, rng=rng))
        else:
            made.append(
                denoise.corrupt_spans(
                    ids,
                    sentinel=pieces.size - 1,
                    eos=pieces.eos,
                    share=how.span_share,
                    mean_length=how.span_length,
                    rng=rng,
                    most=SENTINELS,
                )
            )
    return [prompt for prompt, _ in made], [target for _, target in made]
