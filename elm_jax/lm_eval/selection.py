"""Chooses experts for lm-eval's requests, by a method as `elm evaluate` has it.

A router chooses for each task of lm-eval, from its contexts, without labels: the first few distinct ones
vote, as in Retrieval of Experts, or each gets an expert of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from elm_jax import ranges
from elm_jax.errors import UserError
from elm_jax.evaluation import candidates, derived_experts, methods, scorer_selection
from elm_jax.evaluation.ensembles import ENSEMBLE
from elm_jax.evaluation.few_shot_training import FINETUNE
from elm_jax.evaluation.methods import EvaluationMethod
from elm_jax.experts import key_texts as formats
from elm_jax.experts.library import Library
from elm_jax.experts.lookup import BASE_SCORER, find_library
from elm_jax.records import PromptedExample, Selection
from elm_jax.reporting.summary import OWN
from elm_jax.routing import gate_specs, original, table
from elm_jax.routing.components import COMPONENTS
from elm_jax.routing.gate_specs import GateSpec
from elm_jax.routing.inputs import Queries
from elm_jax.routing.route import FROM_LABELS
from elm_jax.routing.run_inputs import RoutingInputs
from elm_jax.session.workspace import Run

REFUSED_METHODS = {
    "best_single": "accuracies",
    OWN: "the names of our tasks",
    FINETUNE: "labelled rows",
    ENSEMBLE: "the scores of several experts",
    COMPONENTS: "a gate of each task's own",
}
"""What lm-eval's requests do not have, by the router or merge that needs it."""


@dataclass(frozen=True)
class Routing:
    """How experts are chosen.

    Attributes:
        method: The router and the merge.
        queries: Contexts of a task that vote.
        exclude: Datasets; experts trained on one of them are not chosen.
    """

    method: EvaluationMethod
    queries: int = field(metadata=ranges.whole(1))
    exclude: tuple[str, ...]

    __post_init__ = ranges.check


def parse_method(text: str, experts: int = 1) -> EvaluationMethod:
    """Returns the method that a string stands for, which may be a router's name alone.

    Args:
        text: The string.
        experts: The router's option of that name, where it has one and the string does not say it.

    Raises:
        UserError: If there is no such method, or if it needs more than unlabelled requests.
    """
    method = methods.parse_method(text)
    router = table.ROUTERS.get(method.router)
    needs = [REFUSED_METHODS[name] for name in (method.router, method.merge) if name in REFUSED_METHODS]
    needs += [each for each in FROM_LABELS if router is not None and each in router.reads]
    needs += [f"{name}, an option of `elm evaluate`" for name in candidates.split_options(method.options)[1]]
    if needs:
        usable = [name for name, one in table.ROUTERS.items() if not set(FROM_LABELS) & set(one.reads)]
        raise UserError(
            f"Expected a method of unlabelled requests, got {text!r}, which needs {needs[0]!r}. "
            f"Fix: name one of {', '.join(usable)}, or give expert=ID."
        )
    ranges.require("experts", experts, ranges.whole(1))
    if router is not None and "experts" in router.options and "experts" not in method.options:
        method = replace(method, options={**method.options, "experts": experts})
    return method


def find_one_expert(run: Run, routing: Routing) -> tuple[str | None, dict[str, GateSpec]]:
    """Returns the expert that answers all requests, and its gate by its id where it is one.

    The expert is None if each task has experts of its own.

    Raises:
        UserError: If the run has no such expert.
    """
    method = routing.method
    if method.router == BASE_SCORER:
        return BASE_SCORER, {}
    if method.router == "multitask":
        return scorer_selection.find_multitask_expert(run, method.options.get("name", "")), {}
    if method.router == "fixed":
        expert = method.options["expert"]
        find_library(run.workspace, expert).spec(expert)  # raises if there is none
        return expert, {}
    if method.level != "token":
        return None, {}
    library, options = Library.open(run.workspace.library), _router_options(method)
    gate = gate_specs.make_gate_spec(library, method.router, options, library.ids(), routing.exclude)
    return gate.id, {gate.id: gate}


def select_experts(
    inputs: RoutingInputs, task: str, examples: Sequence[PromptedExample], routing: Routing
) -> tuple[dict[str, str], Selection]:
    """Returns the expert of each of a task's distinct inputs, and the router's selection.

    Experts' keys are read only if the router compares them. If the router chooses several experts for a task,
    they are merged by their weights into one of the run's composites.
    """
    method = routing.method
    router = table.find_router(method.router)
    options = _router_options(method)
    index = inputs.choose_index(router)
    by_row = router.level == "row"
    asked = examples if by_row else examples[: routing.queries]
    row_ids = tuple(example.row_id for example in asked)
    queries = Queries(task, row_ids)
    if router.reads_keys:
        text_format = original.query_text_format(options.get("faithful", False)) or index.text_format
        queries = inputs.embed_queries(task, row_ids, formats.format_texts(asked, text_format), text_format)
    options |= inputs.load_arguments(router, index)
    found = router.route(queries, index, exclude=routing.exclude, **options)
    assert isinstance(found, Selection)
    if by_row:
        return {
            example.input: expert for example, (expert, _) in zip(asked, found.nearest, strict=True)
        }, found
    expert = next(iter(found.weights))
    if len(found.weights) > 1 or method.merge not in (None, "average", "concatenate"):
        composite = derived_experts.merge_composite(
            inputs.run, inputs.library, method.merge or "average", method.merge_options, found.weights
        )
        derived_experts.build_composite(inputs.run, composite)
        expert = composite.id
    return {example.input: expert for example in examples}, found


def _router_options(method: EvaluationMethod) -> dict[str, Any]:
    """Returns a router's options without `seen`: lm-eval's names do not say what experts were trained on."""
    return {name: value for name, value in method.options.items() if name != "seen"}
