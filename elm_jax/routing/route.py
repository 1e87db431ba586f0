"""`elm route`: which experts of the library a task should use, and why."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from annotated_types import MinLen
from etils import epath

from elm_jax import locks, names, ranges, schema, storage
from elm_jax.data import task_rows, task_selection
from elm_jax.errors import UserError
from elm_jax.experts import key_texts, lookup
from elm_jax.frames import Records
from elm_jax.records import Selection, TaskSpec
from elm_jax.routing import original, table
from elm_jax.routing.explain import explain_selection
from elm_jax.routing.registry import Router
from elm_jax.routing.run_inputs import RoutingInputs
from elm_jax.routing.token_gate import TokenGate
from elm_jax.session import opening
from elm_jax.session.workspace import Run, Workspace
from elm_jax.statistics import expert_statistics

FROM_LABELS = ("accuracies", "loss")
"""What routers read that comes from labels of the task."""


@dataclass(frozen=True)
class SelectionForm(schema.Form):
    """A `Selection` in a file."""

    task: schema.Text
    router: schema.Text
    weights: Annotated[Mapping[schema.Text, float], MinLen(1)]
    votes: Mapping[schema.Text, schema.Count]
    queries: tuple[str, ...]
    nearest: tuple[tuple[schema.Text, float], ...] = ()
    embedder: str = ""
    rows: str = ""


@dataclass(frozen=True)
class _SelectionsForm(schema.FileForm):
    selections: tuple[SelectionForm, ...]


@dataclass(frozen=True)
class RoutedTask:
    """The experts that a router chose for a task.

    Attributes:
        selection: The experts with their weights.
        explanation: Lines for people: votes, the margin, the nearest keys; empty unless asked for.
    """

    selection: Selection
    explanation: Sequence[str] = ()


def route(
    run: Run | storage.PathLike,
    tasks: task_selection.Tasks,
    *,
    router: str = "roe",
    options: Mapping[str, Any] | None = None,
    experts: int = 1,
    queries: int = key_texts.QUERIES_PER_TASK,
) -> Records[Selection]:
    """Chooses experts for every task, stores the selections in the run and returns them.

    No labels are read, and experts that were trained on the task's own dataset are not chosen: they would not
    be zero-shot there.

    Args:
        run: An open run, or its directory.
        tasks: Specs, or names of tasks, datasets or groups.
        router: The name of a registered router; `elm_jax.routing.table` has the built-in ones.
        options: Options of the router by name.
        experts: How many experts to take, if the router can take several.
        queries: How many inputs of a task the router sees (Q of Jang et al. 2023, arXiv 2302.03202).

    Returns:
        One selection per task; its `weights` are expert -> weight.

    Raises:
        UserError: Before anything is embedded, if the router or an option does not exist, or an option that
            it needs is missing.
    """
    run = opening.ensure_open(run)
    specs = task_selection.select_tasks(tasks, run.source, evaluation=True)
    inputs = make_inputs(run, queries)
    routed = route_tasks(inputs, specs, router, options, experts=experts)
    check_chosen(inputs, routed)
    return Records(each.selection for each in routed)


def check_chosen(inputs: RoutingInputs, routed: Iterable[RoutedTask]) -> None:
    """Does what `expert_statistics.check_inputs` does for the experts that were chosen."""
    chosen = {expert for each in routed for expert in each.selection.weights}
    expert_statistics.check_inputs(inputs.run, chosen)


def make_inputs(run: Run, queries: int = key_texts.QUERIES_PER_TASK) -> RoutingInputs:
    """Returns what routers read of a run; what they choose is stored there, if that can be written."""
    ranges.require("queries", queries, ranges.whole(1))
    keep = storage.is_writable(run.workspace.root)
    if keep:
        lookup.remove_leftovers(run.workspace)
    else:
        run.stages.console.print(f"{run.workspace.root} is read-only: the choices are not kept.")
    return RoutingInputs(run, queries_per_task=queries, keep=keep)


def route_tasks(
    inputs: RoutingInputs,
    specs: Sequence[TaskSpec],
    router: str = "roe",
    options: Mapping[str, Any] | None = None,
    *,
    experts: int = 1,
    explain: bool = False,
    all_rows: bool = False,
    seen: bool = False,
) -> list[RoutedTask]:
    """Chooses experts for tasks and stores the selections in the run; `route` is the simpler way.

    Args:
        inputs: What the routers read of the run.
        specs: The tasks.
        router: The router's name.
        options: Options of the router by name.
        experts: How many experts to take, if the router can take several.
        explain: Whether each selection is explained.
        all_rows: Whether all rows of a task are its queries, in their order.
        seen: Whether experts may be chosen that were trained on the task's own dataset.

    Raises:
        UserError: As `route` does.
    """
    chosen = table.find_router(router)
    arguments = dict(options or {})
    ranges.require("experts", experts, ranges.whole(1))
    name = name_selections(router, experts, {**arguments, **inputs.options})
    if "experts" in chosen.options:
        arguments["experts"] = experts
    _require_options(router, chosen, arguments)
    text_format = original.query_text_format(arguments.get("faithful", False))
    index = inputs.choose_index(chosen)
    arguments |= inputs.load_arguments(chosen, index)
    routed = []
    for spec in specs:
        exclude = () if seen else {spec.dataset}
        queries = inputs.make_queries(spec, chosen, text_format, all_rows=all_rows)
        selection = chosen.route(queries, index, exclude=exclude, **arguments)
        if isinstance(selection, TokenGate):
            raise TypeError(
                f"router {router!r} is registered for level {chosen.level!r}, but gave a TokenGate"
            )
        lines = explain_selection(selection, queries, index, exclude=exclude) if explain else ()
        rows = (queries.row_ids, queries.texts, inputs.run.tokenizer.fingerprint)
        selection = replace(
            selection,
            router=name,
            embedder=queries.embedder,
            rows=storage.fingerprint(rows) if queries.texts else "",
        )
        routed.append(RoutedTask(selection, lines))
    task_rows.print_counts(inputs.run.stages, inputs.counts.values())
    if inputs.keep:
        save_selections(inputs.run.workspace, name, [each.selection for each in routed])
    return routed


def name_selections(router: str, experts: int, options: Mapping[str, Any] | None = None) -> str:
    """Returns what a router's selections are stored as.

    >>> name_selections("roe", 1, {"k": 5})
    'roe_top1,k=5'
    """
    short = (str, int, float, list, tuple)  # accuracies and losses would make no name
    parts = [
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in (options or {}).items()
        if isinstance(value, short)
    ]
    return ",".join([f"{router}_top{experts}", *sorted(parts)])


def save_selections(workspace: Workspace, name: str, selections: Sequence[Selection]) -> None:
    """Stores selections with those of other tasks under the same name."""
    with locks.hold(workspace.selections / ".lock", "elm route", seconds=60.0):
        of_tasks = {selection.task: selection for selection in load_selections(workspace, name)}
        of_tasks |= {selection.task: selection for selection in selections}
        rows = [asdict(selection) for selection in of_tasks.values()]
        storage.write_json(_file(workspace, name), {"selections": rows})


def load_selections(workspace: Workspace, name: str) -> list[Selection]:
    """Returns the selections that are stored under a name; none if there are none."""
    file = _file(workspace, name)
    if not file.exists():
        return []
    told = schema.read(file, _SelectionsForm, what="A router's selections", fix="delete it, and route again")
    return [Selection(**vars(each)) for each in told.selections]


def _require_options(name: str, router: Router, options: Mapping[str, Any]) -> None:
    """Raises if a router chooses no experts for tasks, or if its options are not valid."""
    if router.level == "token":
        others = [other for other, each in table.ROUTERS.items() if each.level != "token"]
        raise UserError(
            f"Expected a router that chooses experts for a task, got {name!r}, which chooses them for every "
            f"token, inside the network. Fix: name one of {', '.join(others)}."
        )
    labels = [each for each in router.reads if each in FROM_LABELS]
    for option in options:
        names.resolve(option, [*router.options, *labels], kind="option", where=f"router {name!r}")
    for needed in sorted({*labels, *router.required_options} - set(options)):
        if needed in FROM_LABELS:
            raise UserError(
                f"Expected {needed!r} for router {name!r}, from labels of the task, got none. Fix: give them "
                "in `options` of `elm_jax.route`, or choose another router."
            )
        raise UserError(
            f"Expected the option {needed!r} for router {name!r}, got none. Fix: give --option "
            f"{needed}=VALUE, or choose another router."
        )


def _file(workspace: Workspace, name: str) -> epath.Path:
    return workspace.selections / f"{names.directory_name(name)}.json"
