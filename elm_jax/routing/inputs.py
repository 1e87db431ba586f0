"""Inputs of a router: the queries of one task, and the key index of the library's experts.

Both must come from one embedder and one text format. The released retrieval embedded raw inputs as queries
and formatted texts as keys, which was a defect and is an error here.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Int

from elm_jax.axes import Embeddings
from elm_jax.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True, repr=False)
class Queries:
    """A few unlabelled inputs of the task that experts are chosen for.

    Attributes:
        task: The task's id.
        row_ids: One id per query.
        texts: One text per query, in `text_format`, for routers that read words.
        vectors: One vector per query, [Q, D], for routers that read vectors.
        embedder: The name of the embedder that made the vectors.
        text_format: The format of the texts.
    """

    task: str
    row_ids: tuple[str, ...]
    texts: tuple[str, ...] = ()
    vectors: Embeddings | None = None
    embedder: str = ""
    text_format: str = ""

    def __repr__(self) -> str:
        return f"Queries({self.task!r}, {len(self.row_ids)} inputs, {self.embedder!r})"


@dataclass(frozen=True, repr=False)
class KeyIndex:
    """The keys of several experts in one table; the rows of an expert are together, in the order of experts.

    Attributes:
        experts: The experts' ids.
        datasets: For each expert the datasets that it was trained on.
        expert_of_row: For each key the position of its expert in `experts`.
        vectors: The keys, [N, D].
        texts: The text of each key.
        embedder: The name of the embedder that made the vectors.
        text_format: The format of the texts.
    """

    experts: tuple[str, ...]
    datasets: tuple[tuple[str, ...], ...]
    expert_of_row: Int[np.ndarray, " N"]
    vectors: Embeddings
    texts: tuple[str, ...]
    embedder: str
    text_format: str
    _made: dict[str, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __repr__(self) -> str:
        return f"KeyIndex({len(self.experts)} experts, {len(self.texts)} keys, {self.embedder!r})"

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Returns what `make` gives, which is called once: what a router computes of the keys alone."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]


def find_allowed_experts(index: KeyIndex, exclude: Collection[str] = ()) -> Bool[np.ndarray, " E"]:
    """Returns which experts may be chosen: those trained on none of the datasets in `exclude`.

    Raises:
        UserError: If there are none.
    """
    # One name is a collection of letters too; taken so, it would exclude nothing.
    excluded = {exclude} if isinstance(exclude, str) else set(exclude)
    allowed = np.array([not excluded.intersection(datasets) for datasets in index.datasets], bool)
    if not allowed.any():
        reason = f" not trained on {', '.join(sorted(excluded))}" if excluded else ""
        raise UserError(
            f"Expected at least one expert{reason}, got none among {len(index.experts)}. Fix: add experts to "
            "the library, or exclude fewer datasets."
        )
    return allowed


def find_allowed_keys(index: KeyIndex, allowed: Bool[np.ndarray, " E"]) -> Bool[np.ndarray, " N"]:
    """Returns which keys belong to experts that may be chosen.

    Raises:
        UserError: If there are none.
    """
    rows = allowed[index.expert_of_row]
    if not rows.any():
        raise UserError(
            "Expected keys of the experts that may be chosen, got none. Fix: run `elm index` to embed them."
        )
    return rows


def find_experts_with_keys(index: KeyIndex, exclude: Collection[str] = ()) -> Bool[np.ndarray, " E"]:
    """Returns which experts may be chosen and have keys to be chosen by.

    Raises:
        UserError: If there are none.
    """
    allowed = find_allowed_experts(index, exclude)
    with_keys = index.expert_of_row[find_allowed_keys(index, allowed)]
    return allowed & np.isin(np.arange(len(index.experts)), with_keys)


def require_vectors(queries: Queries, index: KeyIndex, *, any_text_format: bool = False) -> Embeddings:
    """Returns the queries' vectors, which compare with the keys.

    Args:
        queries: The queries.
        index: The keys.
        any_text_format: Whether the text formats may differ, as in the original.

    Raises:
        UserError: If there are no vectors, or if their embedder, text format or width is not the keys'.
    """
    if queries.vectors is None or queries.vectors.shape[0] == 0:
        raise UserError(
            f"Expected embedded queries of {queries.task!r}, got none. Fix: embed some of its inputs with "
            f"{index.embedder!r}."
        )
    if queries.vectors.shape[0] != len(queries.row_ids):
        raise UserError(
            f"Expected one vector for each of {len(queries.row_ids)} queries of {queries.task!r}, got "
            f"{queries.vectors.shape[0]}."
        )
    _require_same(queries, "embedder", queries.embedder, index.embedder)
    if not any_text_format:
        _require_same(queries, "text format", queries.text_format, index.text_format)
    width, key_width = queries.vectors.shape[1], index.vectors.shape[1]
    if width != key_width:
        raise UserError(
            f"Expected queries of {queries.task!r} of width {key_width}, the keys' own, got width {width}. "
            "Fix: embed both with the same model."
        )
    return queries.vectors


def require_texts(queries: Queries, index: KeyIndex) -> tuple[str, ...]:
    """Returns the queries' texts, which are in the keys' text format.

    Raises:
        UserError: If there are none, or if their format is another.
    """
    if not queries.texts or len(queries.texts) != len(queries.row_ids):
        raise UserError(
            f"Expected one text for each of {len(queries.row_ids)} queries of {queries.task!r}, got "
            f"{len(queries.texts)}."
        )
    _require_same(queries, "text format", queries.text_format, index.text_format)
    return queries.texts


def _require_same(queries: Queries, what: str, of_queries: str, of_keys: str) -> None:
    if of_queries != of_keys:
        raise UserError(
            f"Expected queries of {queries.task!r} with the keys' {what} {of_keys!r}, got {of_queries!r}. "
            "Fix: name the embedder and --dtype that the keys were made with, or make the keys again with "
            "`elm index --rebuild`."
        )
