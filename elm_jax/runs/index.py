"""`elm index`: embeds a few training inputs of every expert that lacks keys, so that routers can find it."""

from collections.abc import Sequence

from elm_jax.engine import embed
from elm_jax.library import keys as formats
from elm_jax.library.store import Library
from elm_jax.records import Keys
from elm_jax.runs import data
from elm_jax.runs.workspace import Run

TEXT_FORMAT = "instance_new"


def index(
    run: Run,
    *,
    size: int = formats.KEYS_PER_EXPERT,
    text_format: str = TEXT_FORMAT,
    rebuild: bool = False,
    ids: Sequence[str] | None = None,
) -> list[str]:
    """Writes the keys of experts that lack them, or with `rebuild` of all; returns whose were written.

    Adding an expert embeds its own texts only.
    """
    library = Library.open(run.workspace.library)
    wanted = library.ids() if ids is None else ids
    lacking = [expert for expert in wanted if rebuild or not library.has_keys(expert)]
    with run.stages.stage("embed keys", len(lacking)) as advance:
        for done, expert in enumerate(lacking, start=1):
            spec = data.find(expert, run.source)
            chosen = formats.sample(data.examples(spec, run.source), size, run.source.seed)
            texts = formats.texts(chosen, text_format, data.choices_expression(spec, run.source))
            library.write_keys(expert, embed_texts(run, texts, text_format))
            advance(done, "")
    return lacking


def embed_texts(run: Run, texts: Sequence[str], text_format: str) -> Keys:
    """Embeds texts with the base's encoder."""
    ids = data.tokens(texts, run.pieces, run.lengths.prompt)
    return Keys(
        vectors=embed.embed_rows(run.base.config, run.base.params, ids),
        texts=tuple(texts),
        embedder=embed.embedder_name(run.base.fingerprint),
        text_format=text_format,
    )
