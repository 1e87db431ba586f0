"""Explain: a selection in a few lines that a person reads: votes, the margin, and the nearest keys."""

from collections.abc import Collection

import numpy as np

from elm_jax.records import Selection
from elm_jax.routing.evidence import Index, Queries, candidates
from elm_jax.routing.roe import neighbours

SHOWN = 5
TEXT = 60  # characters of a key
DEEP = 100  # neighbours among which the nearest key of another expert is looked for


def explain(
    selection: Selection,
    queries: Queries | None = None,
    index: Index | None = None,
    *,
    exclude: Collection[str] = (),
) -> list[str]:
    """Returns the votes, how far the first is ahead of the second, and why the first few queries voted so.

    With the queries and the index that the router saw, each of these queries names its nearest key, and how
    much nearer it is than any of another expert; without them only its expert and similarity.
    """
    cast = sum(selection.votes.values())
    lines = [f"{votes:>4} of {cast} votes  {expert}" for expert, votes in selection.votes.items()]
    ranked = [*selection.votes.items()]
    if len(ranked) > 1:
        (first, most), (second, fewer) = ranked[:2]
        lines.append(f"margin: {first} leads {second} by {most - fewer}")
    shown = [*zip(selection.queries, selection.nearest, strict=False)][:SHOWN]
    near = _near(queries, index, exclude) if queries is not None and index is not None else {}
    for query, (expert, similarity) in shown:
        # Words or means may have decided otherwise than keys do; then the nearest key explains nothing.
        (owner, nearness), said = near.get(query, (("", 0.0), ""))
        why = said if owner == expert and abs(nearness - similarity) < 1e-3 else ""
        lines.append(f"query {query}: nearest is {expert} at {similarity:.3f}{why}")
    return lines


def _near(
    queries: Queries, index: Index, exclude: Collection[str]
) -> dict[str, tuple[tuple[str, float], str]]:
    """Returns every query's nearest expert and similarity, and what to say of the key, if there are any."""
    if queries.vectors is None or not candidates(index, exclude).any():
        return {}
    similarities, rows = neighbours(
        queries, index, min(DEEP, len(index.texts)), exclude=exclude, faithful="raw_queries"
    )
    said = {}
    for query, near, found in zip(queries.row_ids, similarities, rows, strict=True):
        owners = np.where(found >= 0, index.expert_of_row[found], -1)
        others = np.flatnonzero((owners >= 0) & (owners != owners[0]))
        text = " ".join(index.texts[found[0]].split())
        words = f", key {text[:TEXT] + ('…' if len(text) > TEXT else '')!r}"
        if len(others):
            second = others[0]
            words += f", {near[0] - near[second]:.3f} nearer than {index.experts[owners[second]]}"
        said[query] = (index.experts[owners[0]], float(near[0])), words
    return said
