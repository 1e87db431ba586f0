"""`elm index`: embeds a few training inputs of every expert that has no keys, so that routers can find it.

A run embeds with its base's encoder, or with a sentence encoder whose name it stores: queries must be
embedded as the keys were.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import jax
import numpy as np

from elm_jax import storage
from elm_jax.data import prepared, task_rows, task_selection
from elm_jax.errors import UserError
from elm_jax.experts import keys
from elm_jax.experts.library import Library
from elm_jax.models import t5
from elm_jax.models.sizes import T5Config
from elm_jax.records import Keys
from elm_jax.routing import embedding, original
from elm_jax.routing.embedding import Embedder
from elm_jax.session import opening
from elm_jax.session.workspace import Run, Workspace
from elm_jax.statistics import expert_statistics

TEXT_FORMAT = "instance_new"
T5_EMBEDDER = "t5"
"""The embedder that every run has: its base's encoder, the mean over a text's tokens."""
EMBEDDER_FILE = "embedder.json"


def index(
    run: Run | storage.PathLike,
    *,
    experts: Sequence[str] | None = None,
    size: int = keys.KEYS_PER_EXPERT,
    text_format: str = TEXT_FORMAT,
    embedder: str | None = None,
    rebuild: bool = False,
    padded: bool = False,
) -> list[str]:
    """Embeds the keys of experts that have none, so that routers find them.

    A key is one of an expert's training inputs. An expert on several tasks has equally many of each.

    Args:
        run: An open run, or its directory.
        experts: Ids of experts of the library. By default all for which the training tasks are known; the
            others are skipped.
        size: How many keys an expert gets (S of Jang et al. 2023, arXiv 2302.03202): float32 [S, D].
        text_format: How inputs are written, a name of `experts.keys.FORMATS`.
        embedder: "t5", the base's encoder, or a sentence encoder by its name on the hub or its directory. The
            run stores it, and it is the default from then on; before that the default is "t5".
        rebuild: Whether keys that are there are made again.
        padded: Whether keys of "t5" are pooled over padding, as the original's are (`routing.original`). They
            get another embedder's name, so that only a router with that switch compares queries with them.

    Returns:
        The experts whose keys were written.

    Raises:
        UserError: If an expert has keys of another embedder and `rebuild` is off, or if the rows that an
            expert was trained on are not found.
    """
    run = opening.opened(run)
    library = Library.open(run.workspace.library)
    if experts is None:
        experts = _find_indexable_experts(run, library, rebuild=rebuild)
    stored_name = read_embedder_name(run.workspace)
    name = stored_name if embedder is None else _resolve_directory(embedder)
    encoder = _load_padding_embedder(run, name) if padded else load_run_embedder(run, name)
    lacking = [expert for expert in experts if rebuild or not library.has_keys(expert)]
    for expert in experts:
        if expert not in lacking and library.keys(expert).embedder != encoder.name:
            raise UserError(
                f"Expected keys of {encoder.name!r}, the embedder {name!r}, got keys of "
                f"{library.keys(expert).embedder!r} for {expert!r}. Fix: embed all keys again with "
                "`elm index --rebuild`, or name their own embedder with --embedder."
            )
    if name != stored_name:
        storage.write_json(run.workspace.root / EMBEDDER_FILE, {"embedder": name})
    with run.stages.stage("embed keys", len(lacking)) as advance:
        for done, expert in enumerate(lacking, start=1):
            spec = expert_statistics.with_tasks_of_parts(library.spec(expert))
            texts = [
                text
                for task, example in expert_statistics.sample_training_rows(spec, run.source, size)
                for text in keys.texts(
                    [example], text_format, task_selection.choices_expression(task, run.source)
                )
            ]
            library.write_keys(expert, embed_keys(encoder, texts, text_format))
            advance(done, "")
    return lacking


def embed_keys(embedder: Embedder, texts: Sequence[str], text_format: str) -> Keys:
    """Returns the keys of texts that are written in a format."""
    return Keys(embedder(texts), tuple(texts), embedder.name, text_format)


def load_run_embedder(run: Run, name: str) -> Embedder:
    """Returns an embedder by name: the run's own base for "t5", otherwise a sentence encoder."""
    if name != T5_EMBEDDER:
        return embedding.load_embedder(name)
    config, params = run.base.config, run.base.params
    return Embedder(
        name=embedding.name_t5_embedder(run.base.fingerprint),
        fingerprint=run.base.fingerprint,
        dimension=config.emb_dim,
        max_length=run.lengths.prompt,
        embed=lambda texts: embedding.embed_rows(
            config, params, task_rows.tokens(texts, run.pieces, run.lengths.prompt)
        ),
    )


def require_embedder(name: str | None) -> None:
    """Raises if an embedder cannot be loaded, before hours are spent on what needs it."""
    if name not in (None, T5_EMBEDDER):
        embedding.load_embedder(_resolve_directory(name))


def read_embedder_name(workspace: Workspace) -> str:
    """Returns the name of the embedder that a workspace's keys were last made with."""
    file = workspace.root / EMBEDDER_FILE
    return storage.read_json(file, what="A run's embedder")["embedder"] if file.exists() else T5_EMBEDDER


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


def _load_padding_embedder(run: Run, name: str) -> Embedder:
    """Returns the run's own encoder, its states averaged over all positions of padded texts."""
    if name != T5_EMBEDDER:
        raise UserError(f"Expected embedder {T5_EMBEDDER!r} for keys pooled over padding, got {name!r}.")
    embedder = load_run_embedder(run, T5_EMBEDDER)
    encode = _compile_encoder(run.base.config)

    def embed(texts: Sequence[str]) -> np.ndarray:
        rows = list(map(np.asarray, task_rows.tokens(texts, run.pieces, original.PADDED_LENGTH)))
        tokens = prepared.pad(rows, original.PADDED_LENGTH)
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
    return str(directory.resolve()) if name != T5_EMBEDDER and directory.is_dir() else name
