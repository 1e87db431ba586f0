"""Chooses experts for lm-eval's requests.

A router chooses for each task of lm-eval, from its contexts, without labels: the first few distinct ones
vote, as in Retrieval of Experts, or each gets an expert of its own.
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

UNLABELLED_INPUTS = {"vectors", "texts", "params"}
"""Inputs of routers that unlabelled requests give."""


@dataclass(frozen=True)
class Routing:
    """How experts are chosen.

    Attributes:
        router: Name of the router.
        experts: Experts of a task; several are averaged.
        queries: Contexts of a task that vote.
        exclude: Datasets; experts trained on one of them are not chosen.
    """

    router: str = "roe"
    experts: int = 1
    queries: int = formats.QUERIES_PER_TASK
    exclude: tuple[str, ...] = ()


def require_unlabelled_router(routing: Routing) -> None:
    """Raises a UserError if there is no such router, or if it needs more than unlabelled requests."""
    router = table.find_router(routing.router)
    lacking = sorted(set(router.reads) - UNLABELLED_INPUTS)
    if lacking:
        usable = [name for name, one in table.ROUTERS.items() if set(one.reads) <= UNLABELLED_INPUTS]
        raise UserError(
            f"Expected a router of unlabelled requests, got {routing.router!r}, which needs {lacking[0]!r}. "
            f"Fix: name one of {', '.join(usable)}, or give expert=ID."
        )
    if routing.experts < 1 or routing.queries < 1:
        raise UserError(
            f"Expected at least one expert and one query, got experts={routing.experts} and "
            f"queries={routing.queries}. Fix: give larger numbers."
        )


def load_gate(run: Run, routing: Routing) -> GateSpec | None:
    """Returns the gate of a router that chooses for each token, for all requests; None for other routers."""
    if table.find_router(routing.router).level != "token":
        return None
    library = Library.open(run.workspace.library)
    return gate_specs.make_gate_spec(library, routing.router, {}, library.ids(), routing.exclude)


def select_experts(
    inputs: RoutingInputs, task: str, examples: Sequence[PromptedExample], routing: Routing
) -> tuple[dict[str, str], Selection]:
    """Returns the expert of each of a task's distinct inputs, and the router's selection.

    If the router chooses several experts for a task, they are averaged by their weights into one of the
    run's composites.
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
        composite = derived_experts.merge_composite(inputs.run, inputs.library, "average", {}, found.weights)
        derived_experts.build_composite(inputs.run, composite)
        expert = composite.id
    return {example.input: expert for example in examples}, found
