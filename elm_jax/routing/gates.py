"""Gates: ways for every token to choose among the experts of a library, each a scorer with a name of its own.

The name stands for everything that its scores depend on: the router, its options, the parameters of all
experts, and which of them may serve.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from elm_jax import storage
from elm_jax.experts.library import Library
from elm_jax.models import gating
from elm_jax.records import Params
from elm_jax.routing import table
from elm_jax.routing.evidence import Index, Queries
from elm_jax.routing.gate import Gate
from elm_jax.session.workspace import Run
from elm_jax.statistics.expert_statistics import mean_inputs


@dataclass(frozen=True)
class Gated:
    """A router of tokens over experts of a library, without those that were trained on excluded datasets."""

    id: str
    router: str
    options: Mapping[str, Any]
    experts: tuple[str, ...]
    excluded: tuple[str, ...]


def of(
    library: Library,
    router: str,
    options: Mapping[str, Any],
    experts: Sequence[str],
    excluded: Sequence[str],
) -> Gated:
    """Returns the gate of a router; datasets that none of the experts was trained on are left out of it."""
    known = {expert: library.describe(expert) for expert in experts}
    trained = {dataset for about in known.values() for dataset in about.spec.datasets}
    left_out = tuple(sorted(trained & set(excluded)))
    checksums = {expert: about.checksum for expert, about in known.items()}
    told = {"router": router, "options": dict(options), "experts": checksums, "excluded": left_out}
    name = f"gated/{router}-{storage.fingerprint(told)}"
    return Gated(name, router, dict(options), tuple(experts), left_out)


def tree(run: Run, gated: Gated) -> Params:
    """Returns the parameters of a gate's experts with their gate, one tree for all rows.

    Raises a UserError if the experts are no LoRA of one shape, or if what the router reads is not there.
    """
    library = Library.open(run.workspace.library)
    stacked = library.load_stack(gated.experts, base=run.base.fingerprint)
    chosen = table.find(gated.router)
    read: dict[str, Any] = {"params": stacked} if "params" in chosen.reads else {}
    if "activations" in chosen.reads:
        read["activations"] = activations(run, gated.experts)
    index = bare_index(library, gated.experts)
    made = chosen.route(Queries("", ()), index, exclude=gated.excluded, **read, **gated.options)
    if not isinstance(made, Gate):
        raise AssertionError(f"{gated.router} is listed as a router of tokens, but gave no gate")
    return gating.make_gated_tree(
        stacked, made.prototypes, k=made.k, similarity=made.similarity, allowed=made.allowed
    )


def bare_index(library: Library, experts: Sequence[str]) -> Index:
    """Returns an index of experts without their keys, for routers that compare no texts."""
    return Index(
        experts=tuple(experts),
        datasets=tuple(library.spec(expert).datasets for expert in experts),
        expert_of_row=np.zeros(0, np.int64),
        vectors=np.zeros((0, 1), np.float32),
        texts=(),
        embedder="",
        text_format="",
    )


def activations(run: Run, experts: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the mean inputs of every projection, [E, L, I], over the experts' own training inputs."""
    each = [mean_inputs(run, expert) for expert in experts]
    return {path: np.stack([np.asarray(own[path]) for own in each]) for path in each[0]}
