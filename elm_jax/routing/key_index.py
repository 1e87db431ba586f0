"""Key index: the keys of a library's experts, one below the other, as routers search them."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from elm_jax.errors import UserError
from elm_jax.experts.library import Library
from elm_jax.records import Keys
from elm_jax.routing.evidence import Index


def build_index(library: Library, ids: Sequence[str] | None = None) -> Index:
    """Returns the keys of experts, one below the other; of the whole library without `ids`.

    Raises a UserError that names the experts which have no keys, or the first one whose keys come from
    another embedder, text format or width than the first expert's.
    """
    chosen = library.ids() if ids is None else tuple(dict.fromkeys(ids))
    if not chosen:
        raise UserError(
            f"An index needs experts, but none came from the library at {library.root!s}. Train some first."
        )
    datasets = tuple(library.spec(expert).datasets for expert in chosen)
    lacking = [expert for expert in chosen if not library.has_keys(expert)]
    if lacking:
        shown = ", ".join(repr(expert) for expert in lacking[:5]) + (", …" if len(lacking) > 5 else "")
        raise UserError(
            f"Every expert needs keys to be found by, but {len(lacking)} of {len(chosen)} have none: "
            f"{shown}. Run `elm index` to embed them."
        )
    keys = [library.load_keys(expert) for expert in chosen]
    for expert, own in zip(chosen, keys, strict=True):
        _require_same(chosen[0], keys[0], expert, own)
    return Index(
        experts=chosen,
        datasets=datasets,
        expert_of_row=np.repeat(np.arange(len(keys)), [len(own.texts) for own in keys]),
        # On the device once, rather than at every search.
        vectors=jnp.asarray(np.concatenate([np.asarray(own.vectors, np.float32) for own in keys])),
        texts=tuple(text for own in keys for text in own.texts),
        embedder=keys[0].embedder,
        text_format=keys[0].text_format,
    )


def _require_same(first: str, wanted: Keys, expert: str, came: Keys) -> None:
    for what, theirs, own in (
        ("embedder", wanted.embedder, came.embedder),
        ("text format", wanted.text_format, came.text_format),
        ("width", wanted.vectors.shape[1], came.vectors.shape[1]),
    ):
        if own != theirs:
            raise UserError(
                f"Keys of one {what} are wanted, but {first!r} has {what} {theirs!r} and {expert!r} has "
                f"{own!r}. Embed all keys alike with `elm index --rebuild`."
            )
