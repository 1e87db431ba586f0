"""Key index: builds the table of the experts' keys that routers search."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from elm_jax.errors import UserError
from elm_jax.experts.library import Library
from elm_jax.records import Keys
from elm_jax.routing.inputs import KeyIndex


def build_key_index(
    library: Library, ids: Sequence[str] | None = None, reading: Mapping[str, Any] | None = None
) -> KeyIndex:
    """Returns the keys of experts in one table.

    Args:
        library: The library.
        ids: The experts; by default all of the library.
        reading: What the vectors of queries depend on; that of keys which do not say theirs is not known.

    Raises:
        UserError: If experts have no keys; or if their keys differ in embedder, text format or width, or
            were read otherwise than queries are.
    """
    experts = library.ids() if ids is None else tuple(dict.fromkeys(ids))
    if not experts:
        raise UserError(f"Expected experts in the library at {library.root!s}, got none. Fix: train some.")
    datasets = tuple(library.spec(expert).datasets for expert in experts)
    lacking = [expert for expert in experts if not library.has_keys(expert)]
    if lacking:
        shown = ", ".join(repr(expert) for expert in lacking[:5]) + (", …" if len(lacking) > 5 else "")
        raise UserError(
            f"Expected keys of every expert, got none of {len(lacking)} of {len(experts)}: {shown}. Fix: run "
            "`elm index` to embed them."
        )
    keys = [library.load_keys(expert) for expert in experts]
    for expert, own in zip(experts, keys, strict=True):
        _require_same(experts[0], keys[0], expert, own)
        for what, value in (reading or {}).items():
            if own.made_of.get(what, value) != value:
                raise UserError(
                    f"Expected keys of {expert!r} with the {what} that queries have, {value!r}, got "
                    f"{own.made_of[what]!r}. Fix: put it back, or embed all keys again with `elm index "
                    "--rebuild`."
                )
    return KeyIndex(
        experts=experts,
        datasets=datasets,
        expert_of_row=np.repeat(np.arange(len(keys)), [len(own.texts) for own in keys]),
        # On the device once, rather than at every search.
        vectors=jnp.asarray(np.concatenate([np.asarray(own.vectors, np.float32) for own in keys])),
        texts=tuple(text for own in keys for text in own.texts),
        embedder=keys[0].embedder,
        text_format=keys[0].text_format,
    )


def build_keyless_index(library: Library, ids: Sequence[str]) -> KeyIndex:
    """Returns an index of experts without their keys, for routers that compare no texts."""
    return KeyIndex(
        experts=tuple(ids),
        datasets=tuple(library.spec(expert).datasets for expert in ids),
        expert_of_row=np.zeros(0, np.int64),
        vectors=np.zeros((0, 1), np.float32),
        texts=(),
        embedder="",
        text_format="",
    )


def _require_same(first: str, first_keys: Keys, expert: str, keys: Keys) -> None:
    for what, expected, value in (
        ("embedder", first_keys.embedder, keys.embedder),
        ("text format", first_keys.text_format, keys.text_format),
        ("width", first_keys.vectors.shape[1], keys.vectors.shape[1]),
    ):
        if value != expected:
            raise UserError(
                f"Expected keys of one {what}, got {expected!r} of {first!r} and {value!r} of {expert!r}. "
                "Fix: embed all keys alike with `elm index --rebuild`."
            )
