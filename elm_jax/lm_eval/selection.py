"""Selection: which expert of a run serves each of lm-eval's requests.

A router chooses for every task of lm-eval, from its contexts as they come, without labels: the first few
distinct ones vote, as in Retrieval of Experts, or each has an expert of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from elm_jax.errors import UserError
from elm_jax.evaluation import derived_experts
from elm_jax.experts import key_texts as formats
from elm_jax.experts.library import Library
from elm_jax.records import PromptedExample, Selection
from elm_jax.routing import gate_specs, table
from elm_jax.routing.gate_specs import GateSpec
from elm_jax.routing.run_inputs import RoutingInputs
from elm_jax.session.workspace import Run

SEEN_IN_REQUESTS = {"vectors", "texts", "params"}
"""What a router may read: the others need labels, or an expert's name."""


@dataclass(frozen=True)
class Routing:
    """How experts are chosen."""

    router: str = "roe"
    experts: int = 1  # of a task; several are averaged
    queries: int = formats.QUERIES_PER_TASK
    exclude: tuple[str, ...] = ()  # datasets: experts trained on one of them are passed over


def require(routing: Routing) -> None:
    """Raises a UserError for a router that does not exist or that requests tell too little for."""
    router = table.find_router(routing.router)
    lacking = sorted(set(router.reads) - SEEN_IN_REQUESTS)
    if lacking:
        usable = [name for name, one in table.ROUTERS.items() if set(one.reads) <= SEEN_IN_REQUESTS]
        raise UserError(
            f"A router that chooses by unlabelled requests is wanted, but {routing.router!r} needs "
            f"{lacking[0]!r} too. Name one of {', '.join(usable)}, or give expert=ID."
        )
    if routing.experts < 1 or routing.queries < 1:
        raise UserError(
            f"At least one expert and one query are wanted, but experts={routing.experts} and "
            f"queries={routing.queries} came."
        )


def gate(run: Run, routing: Routing) -> GateSpec | None:
    """Returns the gate that serves all requests where the router chooses for every token, else None."""
    if table.find_router(routing.router).level != "token":
        return None
    library = Library.open(run.workspace.library)
    return gate_specs.make_gate_spec(library, routing.router, {}, library.ids(), routing.exclude)


def select(
    inputs: RoutingInputs, task: str, examples: Sequence[PromptedExample], routing: Routing
) -> tuple[dict[str, str], Selection]:
    """Returns the expert that serves each of a task's distinct inputs, and the router's selection.

    Several experts of a task are averaged by their weights; what is made goes to the run's composites.
    """
    router = table.find_router(routing.router)
    keys = inputs.key_index
    by_row = router.level == "row"
    asked = examples if by_row else examples[: routing.queries]
    texts = formats.format_texts(asked, keys.text_format)
    row_ids = [example.row_id for example in asked]
    queries = inputs.embed_queries(task, row_ids, texts, keys.text_format)
    options: dict[str, Any] = {"experts": routing.experts} if "experts" in router.options else {}
    options |= inputs.load_arguments(router, keys)
    found = router.route(queries, keys, exclude=routing.exclude, **options)
    assert isinstance(found, Selection)
    if by_row:
        return {
            example.input: expert for example, (expert, _) in zip(asked, found.nearest, strict=True)
        }, found
    expert = next(iter(found.weights))
    if len(found.weights) > 1:
        composite = derived_experts.merged(inputs.run, "average", {}, found.weights)
        derived_experts.make(inputs.run, composite)
        expert = composite.id
    return {example.input: expert for example in examples}, found
