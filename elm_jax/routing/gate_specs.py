"""Gate specs: routers of tokens over experts of a library, each a scorer with an id of its own.

The id stands for everything that the scores depend on: the router, its options, the parameters of all
experts, and which of them may serve.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from elm_jax import storage
from elm_jax.experts.library import Library
from elm_jax.records import Params
from elm_jax.routing import table
from elm_jax.routing.components import COMPONENTS, make_component_tree
from elm_jax.routing.inputs import Queries
from elm_jax.routing.key_index import build_keyless_index
from elm_jax.routing.mbc import embed_experts
from elm_jax.routing.registry import Router
from elm_jax.routing.token_gate import TokenGate
from elm_jax.session.workspace import Run
from elm_jax.statistics.expert_statistics import load_mean_inputs

GATE_FORMULA_VERSION = 2
"""Counts the formulas that built-in routers had under one name: scores by earlier ones are not taken."""


@dataclass(frozen=True)
class GateSpec:
    """A router of tokens over experts of a library: enough to build its gate.

    Attributes:
        id: `gated/<router>-` and a fingerprint of everything below.
        router: The router's name, or `components`.
        options: Its options.
        experts: The experts' ids.
        excluded: Datasets; experts that were trained on one of them serve no token.
    """

    id: str
    router: str
    options: Mapping[str, Any]
    experts: tuple[str, ...]
    excluded: tuple[str, ...]


def make_gate_spec(
    library: Library,
    router: str,
    options: Mapping[str, Any],
    experts: Sequence[str],
    excluded: Sequence[str],
) -> GateSpec:
    """Returns the spec of a router's gate; datasets that no expert was trained on are left out of it."""
    descriptions = {expert: library.describe(expert) for expert in experts}
    datasets = {dataset for each in descriptions.values() for dataset in each.spec.datasets}
    left_out = tuple(sorted(datasets & set(excluded)))
    checksums = {expert: each.checksum for expert, each in descriptions.items()}
    parts: dict[str, Any] = {"router": router, "options": dict(options), "experts": checksums}
    parts |= {"excluded": left_out, "formulas": GATE_FORMULA_VERSION}
    if "gates" in table.find_router(router).reads:
        gates = {expert: library.load_gates(expert).vectors for expert in experts}
        parts["gates"] = {
            expert: storage.array_fingerprint(dict(vectors)) for expert, vectors in gates.items()
        }
    gate_id = _name_gate(router, parts)
    return GateSpec(gate_id, router, dict(options), tuple(experts), left_out)


def make_component_spec(library: Library, weights: Mapping[str, float], share: float) -> GateSpec:
    """Returns the spec of the components of a task's experts (`routing.components`), expert -> weight."""
    checksums = {expert: library.describe(expert).checksum for expert in weights}
    options = {"weights": list(weights.values()), "share": share}
    gate_id = _name_gate(COMPONENTS, {"options": options, "experts": checksums})
    return GateSpec(gate_id, COMPONENTS, options, tuple(weights), ())


def _name_gate(router: str, parts: Mapping[str, Any]) -> str:
    return f"gated/{router}-{storage.fingerprint(dict(parts))}"


def load_gate(run: Run, spec: GateSpec) -> Params:
    """Returns the parameters of a gate's experts together with their gate, one tree for all rows.

    Raises:
        UserError: If the experts are no LoRA of one shape, or if what the router reads is not there.
    """
    library = Library.open(run.workspace.library)
    stacked = library.load_stack(spec.experts, base=run.base.fingerprint)
    if spec.router == COMPONENTS:
        return make_component_tree(stacked, **spec.options)
    router = table.find_router(spec.router)
    read = load_read_arguments(run, router, spec.experts, known={"params": stacked})
    index = build_keyless_index(library, spec.experts)
    gate = router.route(Queries("", ()), index, exclude=spec.excluded, **read, **spec.options)
    if not isinstance(gate, TokenGate):
        raise TypeError(f"router {spec.router!r} is registered for tokens, but returned no TokenGate")
    return gate.make_tree(stacked)


def load_read_arguments(
    run: Run, router: Router, experts: tuple[str, ...], *, known: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what a router reads of experts of the library, by the name of its argument.

    Args:
        run: The run.
        router: The router.
        experts: The experts' ids.
        known: What is loaded already, by name.
    """

    def load_params() -> Params:
        return Library.open(run.workspace.library).load_stack(experts, base=run.base.fingerprint)

    load = {
        "params": load_params,
        "parameter_points": lambda: embed_experts(known["params"] if "params" in known else load_params()),
        "activations": lambda: load_mean_activations(run, experts),
        "gates": lambda: load_gate_vectors(Library.open(run.workspace.library), experts),
    }
    return {name: known[name] if name in known else load[name]() for name in router.reads if name in load}


def load_mean_activations(run: Run, experts: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the mean inputs of every projection over the experts' own training rows: path -> [E, L, I]."""
    of_experts = [load_mean_inputs(run, expert) for expert in experts]
    return {path: np.stack([np.asarray(own[path]) for own in of_experts]) for path in of_experts[0]}


def load_gate_vectors(library: Library, experts: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the gates that were trained beside experts: path of a projection -> [E, L, I].

    Raises:
        UserError: If an expert has none.
    """
    of_experts = [library.load_gates(expert).vectors for expert in experts]
    return {path: np.stack([own[path] for own in of_experts]) for path in of_experts[0]}
