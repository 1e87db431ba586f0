"""`elm index`: embeds a few training inputs of every expert that lacks keys, so that routers can find it.

A run embeds with its base's encoder, or with a sentence encoder that it then remembers: queries must be
embedded as the keys were.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

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
from elm_jax.routing import embedding, faithful
from elm_jax.routing.embedding import Embedder
from elm_jax.session import opening
from elm_jax.session.workspace import Run, Workspace
from elm_jax.statistics import expert_statistics
from elm_jax.weights import base as weights_base

TEXT_FORMAT = "instance_new"
T5 = "t5"
"""The embedder that every run has: its base's encoder, the mean over a text's tokens."""
REMEMBERED = "embedder.json"


@dataclass(frozen=True)
class Named:
    """What a run embeds with, by name, and how it is read.

    Attributes:
        name: "t5", the run's base, or a sentence encoder's name on the hub or directory.
        dtype: What a sentence encoder computes in.
        ignore: Fields of a sentence encoder's configuration that are not looked at.
    """

    name: str = T5
    dtype: str = "float32"
    ignore: tuple[str, ...] = ()


BASE = Named()
"""The run's own base."""


def index(
    run: Run | storage.PathLike,
    *,
    experts: Sequence[str] | None = None,
    size: int = keys.KEYS_PER_EXPERT,
    text_format: str = TEXT_FORMAT,
    embedder: str | None = None,
    dtype: str | None = None,
    ignore: Collection[str] = (),
    rebuild: bool = False,
    padded: bool = False,
) -> list[str]:
    """Embeds the keys of experts that lack them, so that routers find these; returns whose were written.

    `run` is a run that is open, or its directory. `experts` are ids, those of the whole library without them.
    A key is one of an expert's training inputs, written as `text_format` says and embedded: `size` of them (S
    of Jang et al. 2023, arXiv 2302.03202) are float32 [S, D]. An expert on several tasks has as many of each.

    `embedder` is "t5", the base's encoder, or a sentence encoder by its name on the hub or its directory, and
    the run remembers it; without one it is what the run remembers, or else "t5". `dtype`, float32 or
    bfloat16, is what it computes in, which keys name: of "t5" the type that the run's base is held in, of a
    sentence encoder float32 by default. `ignore` names fields of a sentence encoder's configuration that were
    looked at and do not change a vector. The run remembers both with the encoder. With `rebuild` keys that
    are there are made anew. With `padded` keys of "t5" are pooled as the original's are (`routing.faithful`),
    under another name, which only a router with that switch compares with queries.

    An expert whose tasks are not known is passed over, unless it is named. Raises a UserError if an expert
    has keys of another embedder and `rebuild` was not asked for, and where the rows that an expert was
    trained on are not to be found.
    """
    run = run if isinstance(run, Run) else opening.open_run(run, dtype=dtype)
    library = Library.open(run.workspace.library)
    wanted = experts
    if wanted is None:
        every = library.ids()
        wanted = [
            one
            for one in every
            if (library.has_keys(one) and not rebuild)
            or expert_statistics.may_have_keys(library.spec(one), run.source)
        ]
        expert_statistics.say_passed_over(run, [one for one in every if one not in wanted])
    known = remembered(run.workspace)
    named = _named(run, known, embedder, dtype, ignore)
    chosen = _over_padding(run, named) if padded else opened(run, named)
    lacking = [expert for expert in wanted if rebuild or not library.has_keys(expert)]
    for expert in [] if rebuild else [expert for expert in wanted if expert not in lacking]:
        came = library.keys(expert).embedder
        if came != chosen.name:
            raise UserError(
                f"Keys of {chosen.name!r} are wanted, which {named.name!r} is, but {expert!r} has keys of "
                f"{came!r}. Embed all keys anew with `elm index --rebuild`, or name their own embedder with "
                "--embedder and their type with --dtype."
            )
    if named != known:
        _remember(run.workspace, named)
    with run.stages.stage("embed keys", len(lacking)) as advance:
        for done, expert in enumerate(lacking, start=1):
            rows = expert_statistics.rows_of(
                expert_statistics.by_parts(library.spec(expert)), run.source, size
            )
            texts = [
                text
                for task, example in rows
                for text in keys.texts(
                    [example], text_format, task_selection.choices_expression(task, run.source)
                )
            ]
            library.write_keys(expert, _keys(chosen, texts, text_format))
            advance(done, "")
    return lacking


def embed_texts(run: Run, texts: Sequence[str], text_format: str) -> Keys:
    """Embeds texts as the run embeds its keys."""
    return _keys(opened(run, remembered(run.workspace)), texts, text_format)


def opened(run: Run, named: Named) -> Embedder:
    """Returns an embedder by name: the run's own base for "t5", else a sentence encoder."""
    if named.name != T5:
        return _loaded(named)
    config, params = run.base.config, run.base.params
    return Embedder(
        name=embedding.embedder_name(run.base.fingerprint, run.dtype),
        fingerprint=run.base.fingerprint,
        dimension=config.emb_dim,
        max_length=run.lengths.prompt,
        embed=lambda texts: embedding.embed_rows(
            config, params, task_rows.tokens(texts, run.pieces, run.lengths.prompt)
        ),
    )


def _over_padding(run: Run, named: Named) -> Embedder:
    """Returns the run's own encoder, its states averaged over all places of texts padded to one length."""
    if named.name != T5:
        raise UserError(
            f"Keys pooled over padding are wanted, which {T5!r} alone makes, but {named.name!r} came."
        )
    plain = opened(run, BASE)
    encode = _encoder(run.base.config)

    def embed(texts: Sequence[str]) -> np.ndarray:
        rows = list(map(np.asarray, task_rows.tokens(texts, run.pieces, faithful.PADDED_LENGTH)))
        tokens = prepared.pad(rows, faithful.PADDED_LENGTH)
        # One text at a time: the original's ways are for comparison, and need not be fast.
        hidden = [encode(run.base.params, row[None]) for row in tokens]
        return np.concatenate([np.asarray(faithful.padded_mean(one)) for one in hidden])

    return replace(plain, name=plain.name + faithful.PADDED, embed=embed)


@lru_cache(maxsize=1)
def _encoder(config: T5Config) -> Callable[..., jax.Array]:
    return jax.jit(lambda params, tokens: t5.T5(config).apply({"params": params}, tokens, method="encode"))


def require_embedder(name: str | None) -> None:
    """Refuses an embedder that cannot be loaded, before hours are spent on what needs it."""
    if name not in (None, T5):
        _loaded(Named(_absolute(name)))


def remembered(workspace: Workspace) -> Named:
    """Returns the embedder that a workspace's keys were last made with."""
    file = workspace.root / REMEMBERED
    if not file.exists():
        return BASE
    told = storage.read_json(file, what="A run's embedder")
    return Named(told["embedder"], told.get("dtype", "float32"), tuple(told.get("ignore", ())))


def _remember(workspace: Workspace, named: Named) -> None:
    told: dict[str, Any] = {"embedder": named.name}
    if named.name != T5:
        told |= {"dtype": named.dtype, "ignore": list(named.ignore)}
    storage.write_json(workspace.root / REMEMBERED, told)


def _named(run: Run, known: Named, embedder: str | None, dtype: str | None, ignore: Collection[str]) -> Named:
    """Returns what was named; what is not said of an encoder that the run knows is as it was."""
    dtype = weights_base.dtype_name(dtype)
    name = known.name if embedder is None else _absolute(embedder)
    if name == T5:
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
        return BASE
    plain = known if name == known.name else Named(name)
    return replace(plain, dtype=dtype or plain.dtype, ignore=tuple(ignore) or plain.ignore)


# A run asks for it when it embeds keys, and again for the queries of every task.
@lru_cache(maxsize=1)
def _loaded(named: Named) -> Embedder:
    return embedding.load_embedder(named.name, dtype=named.dtype, ignore=named.ignore)


def _absolute(name: str) -> str:
    where = storage.path(name)
    return str(where.resolve()) if name != T5 and where.is_dir() else name


def _keys(embedder: Embedder, texts: Sequence[str], text_format: str) -> Keys:
    return Keys(embedder(texts), tuple(texts), embedder.name, text_format)
