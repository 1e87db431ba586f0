"""Key index: builds the table of the experts' keys that routers search."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from elm_jax.axes import Embeddings
from elm_jax.errors import UserError
from elm_jax.experts.library import Library
from elm_jax.records import Keys
from elm_jax.routing.inputs import KeyIndex

ALIGNMENT = 64
"""Bytes: where arrays begin that JAX reads in their place on a CPU."""


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
            "`elm index`, or `elm index --expert ID --keys FILE` where it does not know an expert's task."
        )
    return stack_keys(experts, datasets, [library.load_keys(expert) for expert in experts], reading)


def stack_keys(
    experts: Sequence[str],
    datasets: Sequence[tuple[str, ...]],
    keys: Sequence[Keys],
    reading: Mapping[str, Any] | None = None,
) -> KeyIndex:
    """Returns keys in one table.

    Args:
        experts: The experts' ids.
        datasets: For each expert the datasets that it was trained on.
        keys: For each expert its keys.
        reading: As `build_key_index` has it.

    Raises:
        UserError: If the keys do not fit together, as `build_key_index` has it.
    """
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
        experts=tuple(experts),
        datasets=tuple(datasets),
        expert_of_row=np.repeat(np.arange(len(keys)), [len(own.texts) for own in keys]),
        vectors=join_vectors(
            (own.vectors for own in keys),
            (sum(len(own.texts) for own in keys), keys[0].vectors.shape[1]),
        ),
        texts=tuple(text for own in keys for text in own.texts),
        embedder=keys[0].embedder,
        text_format=keys[0].text_format,
    )


def join_vectors(parts: Iterable[Any], shape: tuple[int, int]) -> Embeddings:
    """Returns vectors, [N, D] all together, in float32 on the device, so that no search brings them there.

    They are copied once: on a CPU, JAX reads an array of NumPy's in its place if it begins at a multiple of
    64 bytes, which NumPy does not see to.
    """
    size = 4 * shape[0] * shape[1]
    buffer = np.empty(size + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    joined = buffer[start : start + size].view(np.float32).reshape(shape)
    row = 0
    for part in parts:
        joined[row : row + len(part)] = part
        row += len(part)
    return jax.device_put(joined)


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
