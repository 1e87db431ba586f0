"""Opening: a run's base, tokenizer and settings, read from its directory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from elm_jax import names, storage
from elm_jax.errors import UserError
from elm_jax.session import trust
from elm_jax.session.settings import (
    SETTINGS_FILE,
    add_task_files,
    base_directory,
    load_run_settings,
    make_run_settings,
    require_run_settings,
    save_run_settings,
)
from elm_jax.session.workspace import Run, Workspace
from elm_jax.tasks import user_tasks
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.telemetry.progress import Stages
from elm_jax.tokenizers import huggingface, sentencepiece
from elm_jax.tokenizers.sentencepiece import Tokenizer
from elm_jax.weights import base_model, published_models
from elm_jax.weights import load as weights
from elm_jax.weights.base_model import Base

VOCABULARY_FILE = "vocabulary.model"
HUB_VOCABULARY_FILE = "spiece.model"  # the same file of T5's repositories on the hub
EXTRA_IDS = 16
"""Sentinels of `VOCABULARY_FILE`: spans that pretraining drops from one text at most."""


@dataclass(frozen=True)
class DataSettings:
    """How a run reads and tokenises rows: what does not need its base."""

    tokenizer: Tokenizer
    source: Source
    lengths: Lengths


def load_base_and_tokenizer(
    where: storage.PathLike,
    vocabulary_file: storage.PathLike | None = None,
    dtype: str | None = None,
) -> tuple[Base, Tokenizer]:
    """Returns a base and its tokenizer.

    Args:
        where: The base, in any format or by name as `load_model` takes it.
        vocabulary_file: The tokenizer's file; default: the one beside the base.
        dtype: What the base is held and computes in; default: as stored. The fingerprint is that of the
            stored parameters in any case, so that experts fit the base in every type.

    Raises:
        UserError: If either is missing, or if the tokenizer gives ids that the base has no embedding for.
    """
    directory = weights.find_checkpoint(where)
    base = weights.load_base(directory, dtype=dtype, as_stored=True)
    tokenizer = load_tokenizer(directory, vocabulary_file)
    if tokenizer.size > base.config.vocab_size:
        raise UserError(
            f"Expected a tokenizer of at most {base.config.vocab_size} ids, as many as the base at "
            f"{str(directory)!r} has embeddings, got one of {tokenizer.size}. Fix: use the base's own."
        )
    return base, tokenizer


def find_tokenizer(base: storage.PathLike, vocabulary_file: storage.PathLike | None = None) -> Tokenizer:
    """Returns the tokenizer of a base by path or name, without reading the base; see `load_tokenizer`.

    Whether inputs end with end-of-sequence is what the base's name says.
    """
    tokenizer = load_tokenizer(weights.find_checkpoint(base), vocabulary_file)
    return replace(tokenizer, input_eos=published_models.eos_on_input(str(base)) is not False)


def load_tokenizer(directory: storage.PathLike, vocabulary_file: storage.PathLike | None = None) -> Tokenizer:
    """Returns the tokenizer of a base.

    Args:
        directory: The base's directory.
        vocabulary_file: A SentencePiece model, read as T5X reads it; or a `tokenizer.json`, or the directory
            of a tokenizer, read as transformers reads it; default: what is in the base's directory.

    Raises:
        UserError: If there is none.
    """
    root = storage.path(directory)
    if vocabulary_file is not None:
        return load_tokenizer_file(vocabulary_file)
    if (root / VOCABULARY_FILE).exists():
        return sentencepiece.load(root / VOCABULARY_FILE, extra_ids=EXTRA_IDS)
    if huggingface.has_tokenizer(root):
        return huggingface.load(root)
    raise UserError(
        f"Expected a tokenizer beside the base at {str(directory)!r}, as {VOCABULARY_FILE}, "
        f"{huggingface.JSON} or {HUB_VOCABULARY_FILE}, got none. Fix: name a SentencePiece model, or "
        f"a {huggingface.JSON}, as --tokenizer, or as VOCABULARY of a recipe; for ByT5, put a "
        f"{huggingface.CONFIG} there whose tokenizer_class is {huggingface.BYTE_TOKENIZER}."
    )


def load_tokenizer_file(file: storage.PathLike, extra_ids: int | None = None) -> Tokenizer:
    """Returns the tokenizer of a SentencePiece model, a `tokenizer.json` or its directory.

    Args:
        file: The file, or the directory of a `tokenizer.json`.
        extra_ids: Sentinels on top of a SentencePiece model; default: as T5's or mT5's model has them.

    Raises:
        UserError: If there is no such file, or if it does not parse.
    """
    path = storage.path(file)
    if path.suffix == ".json" or path.is_dir():
        return huggingface.load(path)
    return (
        sentencepiece.load_with_sentinels(file) if extra_ids is None else sentencepiece.load(file, extra_ids)
    )


def open_run(
    run: storage.PathLike | Workspace,
    *,
    initial_checkpoint: storage.PathLike | None = None,
    data_dir: storage.PathLike | None = None,
    templates_dir: storage.PathLike | None = None,
    task_files: Sequence[storage.PathLike] = (),
    overrides: Mapping[str, Any] | None = None,
    source: Source | None = None,
    lengths: Lengths | None = None,
    stages: Stages | None = None,
    dtype: str | None = None,
) -> Run:
    """Opens a run's directory: reads its base and tokenizer, and how it reads rows.

    With `initial_checkpoint` the directory is made if need be, and the run remembers the base, the source
    (but not its limit), the lengths and the dtype. Files of tasks are remembered in any case.

    Args:
        run: The run's directory; or its workspace, in which nothing is written if that is read-only.
        initial_checkpoint: A base, as a directory or a name that `load_model` takes; default: the remembered
            one, or else the run's own.
        data_dir: Directory of datasets, in place of the source's.
        templates_dir: Directory of PromptSource's templates, in place of the source's.
        task_files: Files that define tasks, in addition to the source's.
        overrides: Fields of the source that hold only until the run is closed, such as `{"limit": 8}`; None
            as a value leaves the field as it is.
        source: Where rows and templates come from; default: as remembered.
        lengths: Tokens of inputs and of targets that are kept; default: as remembered.
        stages: Shows progress; default: as a terminal shows it.
        dtype: "float32" or "bfloat16", what the base is held and computes in; default: as remembered, or else
            as stored.

    Returns:
        The open run.

    Raises:
        UntrustedCodeError: If the run names Python that the user has not named, nor agreed to.
        UserError: If the directory, the base or its tokenizer is missing, or if a file of tasks does not
            parse.
    """
    changed = _require_fields(overrides or {})
    workspace = run if isinstance(run, Workspace) else Workspace.at(run)
    for file in task_files:
        user_tasks.load_tasks(file)
    if not workspace.read_only:
        trust.remember([*task_files, *(source.tasks if source else ())])
    directories = {"data_dir": data_dir, "templates_dir": templates_dir}
    given: dict[str, Any] = {name: value for name, value in directories.items() if value is not None}
    named = None
    if initial_checkpoint is not None:
        # The limit is not remembered: an evaluation of experts trained on a few rows reads all rows.
        named = initial_checkpoint, replace(source or Source(), **given, limit=None), lengths, dtype
    if named and workspace.read_only:
        settings = make_run_settings(*named)
    else:
        if named:
            save_run_settings(Workspace.open(workspace.root, create=True), *named)
        Workspace.open(workspace.root)
        require_run_settings(workspace)
        settings = load_run_settings(workspace)
    if source is None:
        trust.require(workspace.root, settings["source"].get("tasks", ()))
    source = replace(source or Source(**settings["source"]), **given, **changed)
    source = replace(source, tasks=[*source.tasks, *task_files])
    if source.input_eos is None:
        source = replace(source, input_eos=settings["source"].get("input_eos"))
    checkpoint = settings["base"] or workspace.base
    dtype = base_model.dtype_name(dtype or settings.get("dtype"))
    if dtype is not None and dtype == weights.find_stored_dtype(checkpoint):
        dtype = None  # so that scores have the same cache key as without it
    base, tokenizer = load_base_and_tokenizer(checkpoint, source.vocabulary, dtype)
    for file in source.tasks:
        user_tasks.load_tasks(file)
    if not workspace.read_only and storage.is_writable(workspace.root):
        add_task_files(workspace, source.tasks)
    if source.prepared is None:
        source = replace(source, prepared=workspace.prepared)
    tokenizer = replace(tokenizer, input_eos=source.input_eos is not False)
    lengths = lengths or Lengths(**settings["lengths"])
    return Run(workspace, base, tokenizer, source, lengths, stages or Stages(), dtype)


def set_base(
    run: storage.PathLike | Workspace,
    base: storage.PathLike,
    *,
    source: Source | None = None,
    lengths: Lengths | None = None,
    dtype: str | None = None,
) -> bool:
    """Makes a run of a base; of a run that has the base already, nothing is changed.

    Args:
        run: The run's directory; or its workspace, in which nothing is written if that is read-only.
        base: A base, as a directory or a name that `load_model` takes.
        source: Where rows come from, and the tokenizer as `vocabulary`; for a new run alone.
        lengths: Tokens of inputs and of targets that are kept; for a new run alone.
        dtype: What the base is held and computes in, float32 or bfloat16; for a new run alone.

    Returns:
        Whether the run is new.

    Raises:
        UserError: If there is no such base, it has no tokenizer, or the run has another base.
    """
    directory = weights.find_checkpoint(base)
    workspace = run if isinstance(run, Workspace) else Workspace.at(run)
    if not (workspace.root / SETTINGS_FILE).exists():
        weights.detect_format(directory)
        load_tokenizer(directory, source.vocabulary if source else None)
        if not workspace.read_only:
            save_run_settings(Workspace.open(workspace.root, create=True), base, source, lengths, dtype)
        return True
    known = storage.path(base_directory(workspace))
    if known.resolve() != directory.resolve():
        raise UserError(
            f"Expected the base of the run at {str(workspace.root)!r}, {str(known)!r}, got "
            f"{str(base)!r}. Fix: leave out --base, or name another directory as --run."
        )
    return False


def load_task_files(workspace: Workspace) -> None:
    """Loads the files that a workspace remembers, which define tasks and may register routers and merges.

    Raises:
        UntrustedCodeError: If there is Python among them that the user has not named.
    """
    files = load_run_settings(workspace)["source"].get("tasks", [])
    trust.require(workspace.root, files)
    for file in files:
        user_tasks.load_tasks(file)


def ensure_open(run: Run | storage.PathLike) -> Run:
    """Returns a run that may be given open or as its directory."""
    return run if isinstance(run, Run) else open_run(run)


def load_data_settings(
    run: storage.PathLike,
    *,
    vocabulary_file: storage.PathLike | None = None,
    extra_ids: int = sentencepiece.EXTRA_IDS,
) -> DataSettings:
    """Returns how a run reads rows, without reading its base.

    Args:
        run: The run's directory; if a vocabulary file is given, it need not exist yet.
        vocabulary_file: The tokenizer's file; default: the run's.
        extra_ids: Sentinels on top of a SentencePiece model that is given.

    Raises:
        UntrustedCodeError: If the run names Python that the user has not named, nor agreed to.
        UserError: If the directory or the tokenizer is missing, or if a file of tasks does not parse.
    """
    workspace = Workspace.at(run) if vocabulary_file else Workspace.open(run)
    if not vocabulary_file:
        require_run_settings(workspace)
    settings = load_run_settings(workspace)
    source = Source(**settings["source"])
    trust.require(workspace.root, source.tasks)
    if vocabulary_file:
        tokenizer = load_tokenizer_file(vocabulary_file, extra_ids)
    else:
        tokenizer = load_tokenizer(settings["base"] or workspace.base, source.vocabulary)
    for file in source.tasks:
        user_tasks.load_tasks(file)
    if source.prepared is None:
        source = replace(source, prepared=workspace.prepared)
    tokenizer = replace(tokenizer, input_eos=source.input_eos is not False)
    return DataSettings(tokenizer, source, Lengths(**settings["lengths"]))


def _require_fields(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the overrides that have a value; raises if a source has no such field, or not such a value."""
    known = [field.name for field in fields(Source)]
    for name in overrides:
        names.resolve(name, known, kind="field", where="Source")
    given = {name: value for name, value in overrides.items() if value is not None}
    Source(**given)  # refuses what is out of its range before anything is read
    return given
