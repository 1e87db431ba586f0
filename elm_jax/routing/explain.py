"""Explain: a selection in a few lines for people: votes, the margin, and the nearest keys."""

from collections.abc import Collection

import numpy as np

from elm_jax.records import Selection
from elm_jax.routing.inputs import KeyIndex, Queries, find_allowed_experts
from elm_jax.routing.roe import find_neighbours

SHOWN_QUERIES = 5
SHOWN_CHARACTERS = 60  # of a key
SEARCH_DEPTH = 100  # neighbours among which the nearest key of another expert is searched


def explain_selection(
    selection: Selection,
    queries: Queries | None = None,
    index: KeyIndex | None = None,
    *,
    exclude: Collection[str] = (),
) -> list[str]:
    """Returns lines with the votes, the lead of the first expert, and why the first few queries voted so.

    Args:
        selection: The selection.
        queries: The queries that the router got; with them and `index` each line of a query has its nearest
            key, and how much nearer it is than any key of another expert.
        index: The keys that the router got.
        exclude: Datasets; keys of experts that were trained on one of them are skipped.
    """
    cast = sum(selection.votes.values())
    lines = [f"{votes:>4} of {cast} votes  {expert}" for expert, votes in selection.votes.items()]
    ranked = [*selection.votes.items()]
    if len(ranked) > 1:
        (first, most), (second, fewer) = ranked[:2]
        lines.append(f"margin: {first} leads {second} by {most - fewer}")
    shown = [*zip(selection.queries, selection.nearest, strict=False)][:SHOWN_QUERIES]
    nearest = {}
    if queries is not None and index is not None:
        nearest = _describe_nearest_keys(queries, index, exclude)
    for query, (expert, similarity) in shown:
        # A router of words or means may decide differently from keys; then the nearest key explains nothing.
        (owner, key_similarity), description = nearest.get(query, (("", 0.0), ""))
        reason = description if owner == expert and abs(key_similarity - similarity) < 1e-3 else ""
        lines.append(f"query {query}: nearest is {expert} at {similarity:.3f}{reason}")
    return lines


def _describe_nearest_keys(
    queries: Queries, index: KeyIndex, exclude: Collection[str]
) -> dict[str, tuple[tuple[str, float], str]]:
    """Returns for every query the expert and similarity of its nearest key, and a description of the key."""
    if queries.vectors is None or not find_allowed_experts(index, exclude).any():
        return {}
    similarities, rows = find_neighbours(
        queries,
        index,
        min(SEARCH_DEPTH, len(index.texts)),
        exclude=exclude,
        switches=frozenset({"raw_queries"}),
    )
    described = {}
    for query, near, row in zip(queries.row_ids, similarities, rows, strict=True):
        owners = np.where(row >= 0, index.expert_of_row[row], -1)
        others = np.flatnonzero((owners >= 0) & (owners != owners[0]))
        text = " ".join(index.texts[row[0]].split())
        words = f", key {text[:SHOWN_CHARACTERS] + ('…' if len(text) > SHOWN_CHARACTERS else '')!r}"
        if len(others):
            second = others[0]
            words += f", {near[0] - near[second]:.3f} nearer than {index.experts[owners[second]]}"
        described[query] = (index.experts[owners[0]], float(near[0])), words
    return described
