"""Evidence: what a router looks at, the queries of one task and the index of the library's keys.

Every router is a function `(queries, index, *, exclude=(), ...) -> Selection`, or `Gate` if it chooses token
by token. Both sides must come from one embedder and one text format: the original embedded raw inputs as
queries and formatted texts as keys
(a defect of its released retrieval), which here is an error.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from elm_jax.axes import Embeddings
from elm_jax.errors import UserError


@dataclass(frozen=True)
class Queries:
    """A few inputs of the task that wants experts; labels are never among them."""

    task: str
    row_ids: tuple[str, ...]
    texts: tuple[str, ...] = ()  # in `text_format`; routers that read words need them
    vectors: Embeddings | None = None  # routers that read vectors need them
    embedder: str = ""
    text_format: str = ""


@dataclass(frozen=True)
class Index:
    """The keys of several experts, one below the other: all rows of an expert together, experts in order."""

    experts: tuple[str, ...]
    datasets: tuple[tuple[str, ...], ...]  # per expert: what it was trained on
    expert_of_row: Int[np.ndarray, " N"]  # position in `experts`
    vectors: Embeddings
    texts: tuple[str, ...]
    embedder: str
    text_format: str


def candidates(index: Index, exclude: Collection[str] = ()) -> Bool[np.ndarray, " E"]:
    """Says which experts may be chosen: those trained on none of the datasets in `exclude`.

    Raises a UserError when none is left.
    """
    # One name is a collection of letters too; taken so, it would exclude nothing.
    excluded = {exclude} if isinstance(exclude, str) else set(exclude)
    allowed = np.array([not excluded.intersection(datasets) for datasets in index.datasets], bool)
    if not allowed.any():
        why = f" once those trained on {', '.join(sorted(excluded))} are excluded" if excluded else ""
        raise UserError(
            f"A router needs at least one expert, but none of the index's {len(index.experts)} is left{why}. "
            "Add experts to the library, or exclude fewer datasets."
        )
    return allowed


def rows_of(index: Index, allowed: Bool[np.ndarray, " E"]) -> Bool[np.ndarray, " N"]:
    """Says which rows of the index belong to experts that may be chosen; an error if there are none."""
    rows = allowed[index.expert_of_row]
    if not rows.any():
        raise UserError(
            "A router that compares queries with keys needs keys, but the experts that may be chosen have "
            "none. Run `elm index` to embed them."
        )
    return rows


def vectors_of(queries: Queries, index: Index, *, any_format: bool = False) -> Embeddings:
    """Returns the queries' vectors, comparable with the index's, or says why they are not.

    Raises a UserError if there are none, or if embedder, text format (but with `any_format`, as the original
    has it) or width differ from the index's.
    """
    if queries.vectors is None or queries.vectors.shape[0] == 0:
        raise UserError(
            f"Embedded queries are wanted to route {queries.task!r}, but none came. Embed some of its inputs "
            f"with {index.embedder!r}."
        )
    if queries.vectors.shape[0] != len(queries.row_ids):
        raise UserError(
            f"One vector a query is wanted to route {queries.task!r}, but {len(queries.row_ids)} row ids "
            f"came with {queries.vectors.shape[0]} vectors."
        )
    _agree(queries, "embedder", queries.embedder, index.embedder)
    if not any_format:
        _agree(queries, "text format", queries.text_format, index.text_format)
    wide, wanted = queries.vectors.shape[1], index.vectors.shape[1]
    if wide != wanted:
        raise UserError(
            f"Queries of {queries.task!r} are wanted {wanted} wide, as the index is, but they came {wide} "
            "wide. Embed both sides with the same model."
        )
    return queries.vectors


def texts_of(queries: Queries, index: Index) -> tuple[str, ...]:
    """Returns the queries' texts, in the index's text format, or says what is missing."""
    if not queries.texts or len(queries.texts) != len(queries.row_ids):
        raise UserError(
            f"One text a query is wanted to route {queries.task!r} by its words, but {len(queries.row_ids)} "
            f"row ids came with {len(queries.texts)} texts."
        )
    _agree(queries, "text format", queries.text_format, index.text_format)
    return queries.texts


def _agree(queries: Queries, what: str, came: str, wanted: str) -> None:
    if came != wanted:
        raise UserError(
            f"Queries and keys are wanted from one {what}, but the index has {wanted!r} and the queries of "
            f"{queries.task!r} have {came!r}. Make the queries as the keys were made, with their "
            "--dtype, or the keys anew with `elm index --rebuild`."
        )
