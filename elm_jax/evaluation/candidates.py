"""Candidates: which experts a method chooses among, and by which keys, if it says so.

Routers take these options beside their own, so that one evaluation of several methods ablates retrieval, or
draws a curve over the library:

    library_size=N    of the experts only N, drawn; those of a smaller N are among those of a larger one
    without=A,B       none that was trained on one of the datasets A and B
    keys=N            N keys of each expert, which are made for this method and not kept
    text_format=NAME  how these keys and the queries are written
    embedder=NAME     what embeds both
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from elm_jax.errors import UserError
from elm_jax.experts.library import Library
from elm_jax.routing.registry import Router
from elm_jax.routing.run_inputs import KeySettings

CANDIDATE_EXPERT_OPTIONS: Mapping[str, Any] = {"library_size": 0, "without": ""}
KEY_OPTIONS: Mapping[str, Any] = {"keys": 0, "text_format": "", "embedder": ""}
ROUTERS_WITHOUT_CANDIDATES = ("fixed", "oracle")
"""Routers that do not choose among candidates."""


def list_candidate_options(name: str, router: Router) -> dict[str, Any]:
    """Returns the options of this file that a router takes, with values that mean none was given."""
    if name in ROUTERS_WITHOUT_CANDIDATES:
        return {}
    return {**CANDIDATE_EXPERT_OPTIONS, **(KEY_OPTIONS if router.reads_keys else {})}


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the options of a method's router, and those of this file."""
    named = {**CANDIDATE_EXPERT_OPTIONS, **KEY_OPTIONS}
    return (
        {name: value for name, value in options.items() if name not in named},
        {name: value for name, value in options.items() if name in named},
    )


def choose_candidates(
    library: Library, experts: Sequence[str], options: Mapping[str, Any], seed: int
) -> list[str]:
    """Returns the experts that a method chooses among, in their order.

    Args:
        library: The library.
        experts: Ids of its experts.
        options: Those of this file.
        seed: Of the draw, in whose order experts come in.

    Raises:
        UserError: If there are not as many experts, or if none is left.
    """
    left_out = {name.strip() for name in options.get("without", "").split(",")} - {""}
    found = [expert for expert in experts if not left_out & set(library.spec(expert).datasets)]
    size = options.get("library_size", len(found))
    if not found or not 1 <= size <= len(found):
        raise UserError(
            f"Expected library_size from 1 to {len(found)}, the experts that may be chosen, got {size}. Fix: "
            "give another number, or leave fewer datasets out."
        )
    drawn = np.random.default_rng(seed).permutation(len(found))[:size]
    return [found[place] for place in sorted(drawn)]


def get_key_settings(options: Mapping[str, Any]) -> KeySettings | None:
    """Returns how the keys of a method are made; None if they are those that experts have.

    Raises:
        UserError: If an expert were to have none.
    """
    if options.get("keys", 1) < 1:
        raise UserError(f"Expected keys of at least 1, got {options['keys']}. Fix: give another number.")
    found = [options.get(name) for name in KEY_OPTIONS]
    return KeySettings(*found) if set(KEY_OPTIONS) & set(options) else None
