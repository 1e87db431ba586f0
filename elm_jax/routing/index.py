"""`elm index`: embeds a few training inputs of every expert that has no keys, so that routers can find it.

A run embeds with its base's encoder, or with a sentence encoder whose name it stores: queries must be
embedded as the keys were.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import jax
import numpy as np

from elm_jax import ranges, schema, storage
from elm_jax.data import identity, task_rows, task_selection, tokenized_rows
from elm_jax.errors import UserError
from elm_jax.experts import compatibility, key_texts, lookup, training_rows
from elm_jax.experts.library import Library
from elm_jax.frames import Records
from elm_jax.models import t5
from elm_jax.models.sizes import T5Config
from elm_jax.records import VOCABULARY, ExpertSpec, Keys, RowCounts
from elm_jax.routing import embedding, original
from elm_jax.routing.embedding import Embedder
from elm_jax.session import opening
from elm_jax.session.workspace import Run, Workspace
from elm_jax.statistics import expert_statistics
from elm_jax.tasks.files import read_text
from elm_jax.weights import base_model

TEXT_FORMAT = "instance_new"
T5_EMBEDDER = "t5"
"""The embedder that every run has: its base's encoder, the mean over a text's tokens."""
EMBEDDER_FILE = "embedder.json"


@dataclass(frozen=True)
class EmbedderSettings:
    """What a run embeds with, and how it is read.

    Attributes:
        name: "t5", the run's base, or a sentence encoder's name on the hub or its directory.
        dtype: What a sentence encoder computes in.
        ignore: Fields of a sentence encoder's configuration that are not looked at.
    """

    name: str = T5_EMBEDDER
    dtype: str = "float32"
    ignore: tuple[str, ...] = ()


@dataclass(frozen=True)
class _EmbedderForm(schema.FileForm):
    embedder: schema.Text
    dtype: Literal["float32", "bfloat16"] = "float32"
    ignore: tuple[str, ...] = ()


BASE_EMBEDDER = EmbedderSettings()
"""The run's own base."""


def index(
    run: Run | storage.PathLike,
    *,
    experts: Sequence[str] | None = None,
    size: int = key_texts.KEYS_PER_EXPERT,
    text_format: str = TEXT_FORMAT,
    embedder: str | None = None,
    dtype: str | None = None,
    ignore: Collection[str] = (),
    rebuild: bool = False,
    padded: bool = False,
    wait: bool = False,
) -> Records[str]:
    """Embeds the keys of experts that have none, so that routers find them.

    A key is one of an expert's training inputs. An expert on several tasks has equally many of each.

    Args:
        run: An open run, or its directory.
        experts: Ids of experts of the library. By default all for which the training tasks are known; the
            others are skipped.
        size: How many keys an expert gets (S of Jang et al. 2023, arXiv 2302.03202): float32 [S, D].
        text_format: How inputs are written, a name of `elm_jax.experts.key_texts.TEXT_FORMATS`.
        embedder: "t5", the base's encoder, or a sentence encoder by its name on the hub or its directory. The
            run stores it, and it is the default from then on; before that the default is "t5".
        dtype: "float32" or "bfloat16", what the embedder computes in, which keys name. Of "t5" it is the type
            that the run's base is held in, of a sentence encoder float32 by default. The run stores it.
        ignore: Fields of a sentence encoder's configuration that were looked at and do not change a vector.
            The run stores them.
        rebuild: Whether keys that are there are made again.
        padded: Whether keys of "t5" are pooled over padding, as the original's are (`routing.original`). They
            get another embedder's name, so that only a router with that switch compares queries with them.
        wait: Whether to wait while another process embeds keys in the same run.

    Returns:
        The experts whose keys were written.

    Raises:
        UserError: If another process does that; if an expert has keys of another embedder and `rebuild` is
            off, or if the rows that an expert was trained on are not found.
    """
    ranges.require("size", size, ranges.whole(1))
    run = run if isinstance(run, Run) else opening.open_run(run, dtype=dtype)
    with run.workspace.lock("index", wait=wait):
        lookup.remove_leftovers(run.workspace)
        library = Library.open(run.workspace.library)
        if experts is None:
            experts = _find_indexable_experts(run, library, rebuild=rebuild)
        stored = load_embedder_settings(run.workspace)
        settings = resolve_settings(run, stored, embedder, dtype, ignore)
        encoder = _load_padding_embedder(run, settings) if padded else load_run_embedder(run, settings)
        lacking = [expert for expert in experts if rebuild or not library.has_keys(expert)]
        specs = {expert: library.spec(expert) for expert in experts}
        compatibility.require_vocabulary(specs.values(), run.tokenizer.fingerprint)
        for expert in experts:
            if expert not in lacking:
                _require_current_keys(run, specs[expert], library.load_keys(expert), encoder, settings)
        if settings != stored:
            _save_embedder_settings(run.workspace, settings)
        counts: list[RowCounts] = []
        with run.stages.stage("embed keys", len(lacking)) as advance:
            for done, expert in enumerate(lacking, start=1):
                keys, counted = make_expert_keys(run, specs[expert], encoder, size, text_format)
                library.write_keys(expert, keys)
                counts += counted
                advance(done, "")
        task_rows.print_counts(run.stages, counts)
    return Records(lacking)


def make_expert_keys(
    run: Run, spec: ExpertSpec, encoder: Embedder, size: int, text_format: str
) -> tuple[Keys, list[RowCounts]]:
    """Returns the keys of an expert, made of its training rows, and what became of these rows.

    Raises:
        UserError: If the rows that the expert was trained on are not found.
    """
    rows = training_rows.load_training_rows(expert_statistics.with_tasks_of_parts(spec), run.source, size)
    texts = [
        text
        for task, example in expert_statistics.sample_rows(rows, size, run.source.seed)
        for text in key_texts.format_texts(
            [example], text_format, task_selection.get_choices_expression(task, run.source)
        )
    ]
    keys = replace(embed_keys(encoder, texts, text_format), made_of=_identify_keys(run, spec, encoder))
    return keys, [examples.counts for _, examples in rows]


def index_texts(run: Run, expert: str, texts: Sequence[str], *, wait: bool = False) -> None:
    """Embeds texts as the keys of an expert whose training rows are not known, so that routers find it.

    Args:
        run: An open run.
        expert: Id of an expert of its library. Keys that it has are replaced.
        texts: Inputs as it was trained on, of which each becomes a key.
        wait: Whether to wait while another process embeds keys in the same run.

    Raises:
        UserError: If there is no such expert, or if another process embeds keys.
    """
    with run.workspace.lock("index", wait=wait):
        lookup.remove_leftovers(run.workspace)
        library = Library.open(run.workspace.library)
        spec = library.spec(expert)
        encoder = load_run_embedder(run, load_embedder_settings(run.workspace))
        with run.stages.stage("embed keys", 1) as advance:
            keys = embed_keys(encoder, texts, TEXT_FORMAT)
            library.write_keys(expert, replace(keys, made_of=_identify_keys(run, spec, encoder)))
            advance(1, "")


def read_text_lines(file: storage.PathLike) -> list[str]:
    """Returns the texts of a file with one a line; empty lines are passed over.

    Raises:
        UserError: If there is no such file, or if it has no text in UTF-8.
    """
    if texts := [line.strip() for line in read_text(file).splitlines() if line.strip()]:
        return texts
    raise UserError(f"Expected an input a line in {str(file)!r}, got none. Fix: write some.")


def embed_keys(embedder: Embedder, texts: Sequence[str], text_format: str) -> Keys:
    """Returns the keys of texts that are written in a format."""
    return Keys(embedder(texts), tuple(texts), embedder.name, text_format)


def load_run_embedder(run: Run, settings: EmbedderSettings) -> Embedder:
    """Returns the run's own base for "t5", otherwise a sentence encoder."""
    if settings.name != T5_EMBEDDER:
        return embedding.load_embedder(settings.name, dtype=settings.dtype, ignore=settings.ignore)
    config, params = run.base.config, run.base.params
    return Embedder(
        name=embedding.name_t5_embedder(run.base.fingerprint, run.dtype),
        fingerprint=run.base.fingerprint,
        dimension=config.emb_dim,
        max_length=run.lengths.prompt,
        embed=lambda texts: embedding.embed_rows(
            config, params, task_rows.tokenize_texts(texts, run.tokenizer, run.lengths.prompt)
        ),
    )


def require_embedder(name: str | None) -> None:
    """Raises if an embedder cannot be loaded, before hours are spent on what needs it."""
    if name not in (None, T5_EMBEDDER):
        embedding.load_embedder(_resolve_directory(name))


def load_embedder_settings(workspace: Workspace) -> EmbedderSettings:
    """Returns the embedder that a workspace's keys were last made with."""
    file = workspace.root / EMBEDDER_FILE
    if not file.exists():
        return BASE_EMBEDDER
    stored = schema.read(file, _EmbedderForm, what="A run's embedder", fix="delete it, and run `elm index`")
    return EmbedderSettings(stored.embedder, stored.dtype, stored.ignore)


def _save_embedder_settings(workspace: Workspace, settings: EmbedderSettings) -> None:
    stored: dict[str, Any] = {"embedder": settings.name}
    if settings.name != T5_EMBEDDER:
        stored |= {"dtype": settings.dtype, "ignore": list(settings.ignore)}
    storage.write_json(workspace.root / EMBEDDER_FILE, stored)


def resolve_settings(
    run: Run, stored: EmbedderSettings, embedder: str | None, dtype: str | None, ignore: Collection[str]
) -> EmbedderSettings:
    """Returns the settings that are given; the stored encoder keeps those that are not.

    Raises:
        UserError: If the run's own base is to embed in another type than it is held in, or to ignore fields.
    """
    dtype = base_model.dtype_name(dtype)
    name = stored.name if embedder is None else _resolve_directory(embedder)
    if name == T5_EMBEDDER:
        if dtype not in (None, run.base.config.dtype):
            raise UserError(
                f"Expected a run whose base is held in {dtype}, got one in {run.base.config.dtype}. Fix: "
                "give dtype to open_run, or leave it out."
            )
        if ignore:
            raise UserError(
                f"Expected a sentence encoder whose {', '.join(ignore)} is to be ignored, got the run's own "
                "base. Fix: name it with --embedder."
            )
        return BASE_EMBEDDER
    known = stored if name == stored.name else EmbedderSettings(name)
    return replace(known, dtype=dtype or known.dtype, ignore=tuple(ignore) or known.ignore)


def _require_current_keys(
    run: Run, spec: ExpertSpec, keys: Keys, encoder: Embedder, settings: EmbedderSettings
) -> None:
    """Raises if an expert's keys were made by another embedder or vocabulary, or of other rows."""
    if keys.embedder != encoder.name:
        raise UserError(
            f"Expected keys of {encoder.name!r}, the embedder {settings.name!r}, got keys of "
            f"{keys.embedder!r} for {spec.id!r}. Fix: embed all keys again with "
            "`elm index --rebuild`, or name their own embedder with --embedder and its type with --dtype."
        )
    training_rows.require_training_rows(spec, run.source)
    now = _identify_keys(run, spec, encoder)
    differing = [name for name, value in keys.made_of.items() if now.get(name, value) != value]
    if differing:
        raise UserError(
            f"Expected keys of {spec.id!r} made of what it and the run have now, got keys with another "
            f"{' and '.join(differing)}. Fix: embed all keys again with `elm index --rebuild`."
        )


def describe_tokenization(run: Run, encoder: Embedder) -> dict[str, Any]:
    """Returns what vectors depend on beside the texts and the encoder: the vocabulary, and the cut."""
    return {VOCABULARY: run.tokenizer.fingerprint, "max_length": encoder.max_length}


def _identify_keys(run: Run, spec: ExpertSpec, encoder: Embedder) -> dict[str, Any]:
    """Returns what an expert's keys are made of: how they are read, and its rows as far as it notes them."""
    rows = {
        task: value["digests"]["columns"]
        for task, value in spec.recipe.get(identity.ROW_IDENTITIES_KEY, {}).items()
    }
    return describe_tokenization(run, encoder) | ({"rows": rows} if rows else {})


def _find_indexable_experts(run: Run, library: Library, *, rebuild: bool) -> list[str]:
    """Returns the experts that have keys or can get some, and reports the others."""
    ids = library.ids()
    indexable = [
        expert
        for expert in ids
        if (library.has_keys(expert) and not rebuild)
        or expert_statistics.can_have_keys(library.spec(expert), run.source)
    ]
    skipped = [expert for expert in ids if expert not in indexable]
    expert_statistics.report_skipped_experts(run, skipped)
    return indexable


def _load_padding_embedder(run: Run, settings: EmbedderSettings) -> Embedder:
    """Returns the run's own encoder, its states averaged over all positions of padded texts."""
    if settings.name != T5_EMBEDDER:
        raise UserError(
            f"Expected embedder {T5_EMBEDDER!r} for keys pooled over padding, got {settings.name!r}."
        )
    embedder = load_run_embedder(run, BASE_EMBEDDER)
    encode = _compile_encoder(run.base.config)

    def embed(texts: Sequence[str]) -> np.ndarray:
        rows = list(map(np.asarray, task_rows.tokenize_texts(texts, run.tokenizer, original.PADDED_LENGTH)))
        tokens = tokenized_rows.pad(rows, original.PADDED_LENGTH)
        # One text at a time: the original's ways are for comparison, and need not be fast.
        hidden = [encode(run.base.params, row[None]) for row in tokens]
        return np.concatenate([np.asarray(original.average_over_padding(one)) for one in hidden])

    return replace(embedder, name=embedder.name + original.PADDED_SUFFIX, embed=embed)


@lru_cache(maxsize=1)
def _compile_encoder(config: T5Config) -> Callable[..., jax.Array]:
    return jax.jit(lambda params, tokens: t5.T5(config).apply({"params": params}, tokens, method="encode"))


def _resolve_directory(name: str) -> str:
    """Returns an embedder's name; the absolute path if it is a directory."""
    directory = storage.path(name)
    return str(storage.absolute(directory)) if name != T5_EMBEDDER and directory.is_dir() else name
